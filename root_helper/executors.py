"""Who runs what: the registry of executors, the state files that a restarted helper adopts from, facts from /proc.

An executor is a process with this pid, this start time, on this boot, with this uid, never a name. The state files
stand in a directory that only root can write; what is in them is checked against the kernel all the same. Where they
are damaged or gone, systemd's record of the scopes says the same; without scopes such an executor is not known, and
the lock that it holds keeps its user from a second one.
"""

import contextlib
import errno
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

from protocol.messages import Cgroup, Pid, Seconds, Uid
from protocol.settings import SettingsError, settings
from root_helper import scope

_FORKNOEXEC: Final = 0x40  # PF_FORKNOEXEC, include/linux/sched.h: forked, has not executed anything yet
_NO_PROCESS: Final = {errno.ESRCH, errno.EINVAL, errno.ENOENT}  # it is gone, or its pid is a thread's by now
_MAX_STATE: Final = 4096
TICKS: Final = os.sysconf("SC_CLK_TCK")
"""A second, in the unit of ``start_time``."""
_log: Final = logging.getLogger("executor")


@dataclass(frozen=True, slots=True)
class Executor:
    """One executor. ``start_time``: field 22 of /proc/PID/stat, ticks since boot; ``since``: Unix seconds."""

    user: str
    os_user: str
    uid: Uid
    pid: Pid
    start_time: int
    boot_id: str
    since: Seconds
    cgroup: Cgroup
    scope: str | None
    ended: bool = False
    """Its end is in the audit log; what it left behind may still be there."""
    after: str = ""
    """The hash of the audit log's last record before its ``started``."""


class Stat(NamedTuple):
    """What /proc/PID/stat says: proc(5)."""

    ended: bool
    """No thread runs. The first one can end, and is shown as a zombie, while others go on."""
    parent: int
    session: int
    executed: bool
    """It called execve since it was forked."""
    start_time: int
    cpu: float
    """Seconds that it and the children that it waited for have used."""


def stat_of(pid: int) -> Stat | None:
    """Give the facts of a process, None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before it can hold anything
    except (FileNotFoundError, ProcessLookupError):
        return None
    ended = fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1
    used = sum(map(int, fields[11:15])) / TICKS
    return Stat(ended, int(fields[1]), int(fields[3]), not int(fields[6]) & _FORKNOEXEC, int(fields[19]), used)


def boot_id() -> str:
    """Give the kernel's random id of this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def uid_of(pid: int) -> int | None:
    """Give the uid that all four ids of a process are, None where it is gone or they differ."""
    uids = set(_status_of(pid, b"Uid:"))
    return uids.pop() if len(uids) == 1 else None


def _status_of(pid: int, name: bytes) -> list[int]:
    """Return the numbers of a line of /proc/PID/status, none if the process is gone."""
    gone = (FileNotFoundError, ProcessLookupError, StopIteration)
    with contextlib.suppress(*gone), open(f"/proc/{pid}/status", "rb") as file:
        return next([int(number) for number in line.split()[1:]] for line in file if line.startswith(name))
    return []


def scope_facts(user: str, os_user: str, uid: int) -> dict[str, object]:
    """Give what this process's scope shall say of it: what it takes to know the executor again."""
    pid = os.getpid()
    stat = stat_of(pid)
    return {"user": user, "os_user": os_user, "uid": uid, "pid": pid, "start_time": stat.start_time if stat else 0}


def has_process(executor: Executor) -> bool:
    """Return True if its main process runs, or is a zombie that somebody will let go: our own child, or a traced one.

    Any other zombie is its parent's, and a container's PID 1 may never wait for it.
    """
    stat = stat_of(executor.pid)
    if stat is None or stat.start_time != executor.start_time or executor.boot_id != boot_id():
        return False
    return not stat.ended or stat.parent == os.getpid() or any(_status_of(executor.pid, b"TracerPid:"))


def signalled(executor: Executor, number: int) -> Iterator[bool]:
    """Send a signal to all that is alive of an executor, a process a step; 0 only looks.

    That is what is in its scope, or where it has none, in its session with its uid. Each step says whether it found
    such a process.
    """
    if _is_of_another_time(executor):
        return
    for pid in scope.processes(executor.scope) if executor.scope else everything():
        found = _is_member(pid, executor)
        if found and number == signal.SIGKILL and executor.scope and scope.kill(executor.scope, executor.cgroup):
            yield True
            return
        if found and number:
            _send(pid, executor, number)
        yield found


def everything() -> Iterator[int]:
    """Give the pids of all processes."""
    return map(int, filter(str.isdigit, os.listdir("/proc")))


def _send(pid: int, executor: Executor, number: int) -> None:
    """Send it; a pidfd is opened first and the facts are looked at again, so that no stranger is hit."""
    with contextlib.suppress(OSError):  # it is gone, or its pid is a thread's by now
        pidfd = os.pidfd_open(pid)
        try:
            if _is_member(pid, executor):
                # PRIVILEGED: another user's process, known by descriptor, session and uid.
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def _is_of_another_time(executor: Executor) -> bool:
    """Tell whether nothing of it can be left: another boot, or its pid is another process's by now.

    A pid is not given away while a session bears it, so in both cases a session of that number is a stranger's.
    """
    leader = stat_of(executor.pid)
    return executor.boot_id != boot_id() or (leader is not None and leader.start_time != executor.start_time)


def _is_member(pid: int, executor: Executor) -> bool:
    """Look at the facts; a process that has ended holds nothing, even if its zombie stays."""
    stat = stat_of(pid)
    if stat is None or stat.ended or (executor.scope is None and stat.session != executor.pid):
        return False
    return uid_of(pid) == executor.uid


class Registry:
    """The executors by KNIME user, each with a state file in ``directory``."""

    def __init__(self, directory: str) -> None:
        """Open the state directory, which is made where it is missing."""
        os.makedirs(directory, 0o700, exist_ok=True)
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._boot_id = boot_id()
        self.by_user: dict[str, Executor] = {}
        self.leaving: dict[str, Executor] = {}
        self._seen: set[str] = set()

    def described(self, user: str, pid: int, facts: dict[str, Any], after: str) -> Executor | None:
        """Make the entry of a worker that is ready; None where the process is gone."""
        stat = stat_of(pid)
        if stat is None:
            return None
        return Executor(
            user, facts["os_user"], facts["uid"], pid, stat.start_time, self._boot_id, time.time(),
            facts["cgroup"], facts["scope"], after=after,
        )  # fmt: skip

    def save(self, executor: Executor) -> None:
        """Write the state file: complete, then renamed.

        Raises:
            OSError: it could not be written.
        """
        staging = f".{executor.user}.new"  # no user name starts with a dot
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(staging, flags, 0o600, dir_fd=self._directory), "w", encoding="ascii") as file:
            json.dump(asdict(executor), file)
        os.rename(staging, executor.user, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def add(self, executor: Executor) -> None:
        """Note an executor that runs."""
        self.by_user[executor.user] = executor
        self._seen.add(executor.user)

    def knows(self, user: str) -> bool:
        """Tell whether the user's last executor was one of this registry, so that its end was seen."""
        return user in self._seen

    def everybody(self) -> list[Executor]:
        """Give all that have processes: running, or ended with something left behind."""
        return [*self.by_user.values(), *self.leaving.values()]

    def leave(self, executor: Executor, *, recorded: bool = True) -> None:
        """Note that the main process ended; an end that could not be recorded is the next helper's to record."""
        self.by_user.pop(executor.user, None)
        self.leaving[executor.user] = executor
        self._seen.add(executor.user)
        with contextlib.suppress(OSError):  # a helper that is restarted now records the end once more
            self.save(replace(executor, ended=recorded))

    def gone(self, executor: Executor) -> None:
        """Forget an executor of which nothing is left."""
        self.leaving.pop(executor.user, None)
        self.forget_state(executor.user)

    def forget_state(self, user: str) -> None:
        """Remove the state file; one that stays is told from the kernel's facts to be of no executor."""
        with contextlib.suppress(OSError):
            os.unlink(user, dir_fd=self._directory)

    def adopt(self, running: Callable[[Executor, int], None], ended: Callable[[Executor], None]) -> None:
        """Find what an earlier helper started: what runs, each with its pidfd, and what ended in between."""
        for executor in (*self._saved(), *self._in_scopes()):
            if executor.user in self.by_user or executor.user in self.leaving:
                continue
            try:
                pidfd = os.pidfd_open(executor.pid)
            except OSError as error:
                if error.errno not in _NO_PROCESS:
                    raise
                pidfd = None
            if pidfd is not None and self._is_it(executor):
                running(executor, pidfd)
                continue
            if pidfd is not None:
                os.close(pidfd)
            ended(executor)

    def _is_it(self, executor: Executor) -> bool:
        """Tell whether it runs; a worker whose supervisor was killed before ``G`` is none, and will be seen off."""
        stat = stat_of(executor.pid)
        return stat is not None and stat.executed and has_process(executor) and uid_of(executor.pid) == executor.uid

    def _saved(self) -> Iterator[Executor]:
        for name in sorted(os.listdir(self._directory)):
            if name.startswith("."):
                continue
            try:
                executor = settings(Executor, json.loads(self._text_of(name)), name)
            except (OSError, ValueError, RecursionError, SettingsError) as error:
                _log.error("state file %s is damaged, its executor is looked for in the scopes: %s", ascii(name), error)
                continue
            if executor.user == name:
                yield executor

    def _text_of(self, name: str) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with open(os.open(name, flags, dir_fd=self._directory), "rb") as file:
            return file.read(_MAX_STATE)

    def _in_scopes(self) -> Iterator[Executor]:
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for (unit, cgroup), facts in scope.recorded():
            with contextlib.suppress(ValueError, KeyError):  # a scope that no helper made
                uid, pid, ticks = (int(facts[key]) for key in ("uid", "pid", "start_time"))
                since = booted + ticks / TICKS
                yield Executor(facts["user"], facts["os_user"], uid, pid, ticks, self._boot_id, since, cgroup, unit)
