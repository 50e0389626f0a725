"""Become the user, for good, and hand over to the executor: the last steps of a worker, and the gate's first.

It trusts the account that was checked and the root-owned configuration. Nothing of the helper's own is left to the
user: no descriptor, no environment, no id, no capability, no keyring, no way back.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import stat
from collections.abc import Mapping, Sequence
from typing import Final

from root_helper.policy import Account

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522  # capset(2)
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1  # keyctl(2)
_SYS_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}
_JOURNAL: Final = "/run/systemd/journal/stdout"
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_RLIMITS: Final = {"nofile": resource.RLIMIT_NOFILE, "core": resource.RLIMIT_CORE}
_OPEN_FILES: Final = resource.getrlimit(resource.RLIMIT_NOFILE)
_LARGE_LOG: Final = 10 * 2**20  # bytes; the one before is kept as executor.log.1
_libc: Final = ctypes.CDLL(None, use_errno=True)


class SpawnError(Exception):
    """The step that did not work, and why."""


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Give root up: supplementary groups, then gid, then uid; verified to be irreversible.

    Raises:
        SpawnError: an id is not what it must be, or root can be had back.
    """
    # PRIVILEGED: the order is credentials(7)'s: after setresuid nothing else may be changed.
    os.setgroups(groups)
    # PRIVILEGED: real, effective and saved, so that none is left to return to.
    os.setresgid(gid, gid, gid)
    # PRIVILEGED: the last use of uid 0 in this process.
    os.setresuid(uid, uid, uid)
    _drop_capabilities()
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or set(os.getgroups()) != set(groups):
        raise SpawnError("the kernel did not set the ids that were asked for")
    try:
        # PRIVILEGED: must fail; that it does is the proof.
        os.setresuid(-1, 0, -1)
    except PermissionError:
        return
    raise SpawnError("uid 0 can be had back")


def _drop_capabilities() -> None:
    """Empty every set: setresuid(2) leaves the inheritable one, which whoever started the helper may have filled."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def no_new_privileges() -> None:
    """No execve gives privileges from here on: set-uid programs and file capabilities do nothing (prctl(2))."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def end_with(parent: int) -> None:
    """Die when the parent does: set after setresuid(2), which clears it (prctl(2)), and for a parent gone already."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
    if os.getppid() != parent:
        os._exit(0)


def allow_descriptors(number: int) -> int:
    """Raise this process's own soft limit, if the hard one allows it, and give that; what is started gets it back."""
    soft, hard = _OPEN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(number, hard)), hard))
    return hard


def fresh_process(keep: Sequence[int]) -> None:
    """Drop what a process inherits from the supervisor: descriptors, signal handling, session, priority."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):  # the descriptor that listed them is gone by now
                os.close(int(name))
    resource.setrlimit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    os.setsid()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o077)


def become_user(account: Account, workspace: int, limits: Mapping[str, int], tag: str) -> None:
    """Turn this process into the account's, inside its workspace, its output in the journal or a file of its own.

    Raises:
        SpawnError: a step failed; the process must end.
        OSError: likewise.
    """
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("0")
    for name in _RLIMITS.keys() & limits.keys():
        # PRIVILEGED: a limit above the helper's own hard limit is root's to give.
        resource.setrlimit(_RLIMITS[name], (limits[name], limits[name]))
    with contextlib.suppress(PermissionError):  # a unit's Nice= stays where there is no CAP_SYS_NICE to undo it
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    become(account.uid, account.gid, account.groups)
    _new_session_keyring()
    no_new_privileges()
    os.fchdir(workspace)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    output = _output(tag)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


def environment(account: Account, workspace: str, temp: str, own: Mapping[str, str]) -> dict[str, str]:
    """Give the executor's whole environment: the fixed part, and ``own`` (KNIME's variables and the site's)."""
    return {
        "HOME": account.home,
        "LOGNAME": account.name,
        "USER": account.name,
        "SHELL": account.shell or "/bin/sh",
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "PWD": workspace,
        "KNIME_EXECUTOR_TEMP_DIR": temp,
        "TMPDIR": temp,
        **own,
    }


def _new_session_keyring() -> None:
    """Leave root's session keyring, which all users would share; where a filter forbids it, it forbids keys to all."""
    joined = _libc.syscall(_SYS_KEYCTL[os.uname().machine], _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)
    if joined < 0 and ctypes.get_errno() not in {errno.EPERM, errno.ENOSYS}:
        raise SpawnError(f"session keyring: {os.strerror(ctypes.get_errno())}")


def _output(tag: str) -> int:
    """Open the journal as this user, or where there is none, a file that only the user (and root) can read."""
    if not os.path.exists(_JOURNAL):
        return _own_log()
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.connect(_JOURNAL)
    stream.shutdown(socket.SHUT_RD)
    stream.sendall(f"{tag}\n\n6\n1\n0\n0\n0\n".encode("ascii"))  # sd_journal_stream_fd(3)
    return stream.detach()


def _own_log() -> int:
    """Open executor.log to go on with, as the user, in the workspace; one that is large or readable by others goes."""
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat("executor.log")
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        if not is_own or found.st_size >= _LARGE_LOG:
            os.rename("executor.log", "executor.log.1")
    return os.open("executor.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise SpawnError(f"{what}: {os.strerror(ctypes.get_errno())}")
