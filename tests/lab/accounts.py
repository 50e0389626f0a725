"""Accounts of the OS for a run: users who have never logged in, groups, the daemons' own system users.

Every account that is made here says so in its comment field, and only such accounts are removed. A user's home is
named but never made. The system users have fixed names: they are shared by the runs of one machine, so each run
holds a lock on them and the last one takes them away.
"""

import fcntl
import grp
import os
import pwd
import secrets
import subprocess
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab.processes import end, processes_of, wait_for

LISTENER: Final = "knime-listener"
GATE: Final = "knime-gate"
OPERATORS: Final = "knime-operators"
PAM_SERVICE: Final = Path("/etc/pam.d/knime-peruser")
CHECKOUT: Final = Path(__file__).resolve().parents[2]
MARK: Final = "made by the lab of knime-peruser"


@dataclass(frozen=True, slots=True)
class OsUser:
    """An account made for a run; ``home`` does not exist."""

    name: str
    uid: int
    gid: int
    home: Path


class Accounts:
    """Makes accounts named ``<prefix><name>``, and takes them back. ``noted`` hears of each before it is made."""

    def __init__(self, homes: Path, prefix: str, noted: Callable[[str, str], None] = lambda _kind, _name: None) -> None:
        self.homes = homes
        self.prefix = prefix
        self._noted = noted
        self._users: list[OsUser] = []
        self._groups: list[str] = []

    def user(self, name: str, *, groups: Sequence[str] = (), options: Sequence[str] = ()) -> OsUser:
        """Make a user with a group of its own and a home that is absent; ``options`` are useradd's (8)."""
        full = self.prefix + name
        home = self.homes / full
        if uid_of(full) is not None or _group_exists(full):
            raise RuntimeError(f"user or group {full} is there already; it is left alone")
        self._noted("user", full)
        also = ["--groups", ",".join(groups)] if groups else []
        command = ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/usr/sbin/nologin"]
        run([*command, "--comment", MARK, *also, *_own_ids(), *options, full])
        account = pwd.getpwnam(full)
        user = OsUser(full, account.pw_uid, account.pw_gid, Path(account.pw_dir))
        self._users.append(user)
        return user

    def group(self, name: str) -> str:
        """Make a group; give its full name."""
        full = self.prefix + name
        if _group_exists(full):
            raise RuntimeError(f"group {full} is there already; it is left alone")
        self._noted("group", full)
        run(["groupadd", *_own_ids("GID"), full])
        self._groups.append(full)
        return full

    def remove(self) -> None:
        """End the users' processes and take every account away that was made here."""
        end_processes([user.uid for user in self._users])
        for user in self._users:
            remove_user(user.name)
        for group in self._groups:
            remove_group(group)
        self._users.clear()
        self._groups.clear()


class SystemUsers:
    """The daemons' own accounts and their PAM service. What the machine has already is used and left as it is."""

    def __init__(self) -> None:
        self._lock: int | None = None

    def create(self) -> None:
        """Make what is missing of them, and hold them until ``remove`` or the end of this process."""
        self._lock = _locked(fcntl.LOCK_SH)  # while it is held nobody takes them away
        accounts_are_there = _group_exists(OPERATORS) and all(uid_of(name) is not None for name in (LISTENER, GATE))
        if accounts_are_there and PAM_SERVICE.exists():
            return
        os.close(self._lock)
        self._lock = _locked(fcntl.LOCK_EX)
        comment = MARK
        if not _group_exists(OPERATORS):
            run(["groupadd", "--system", OPERATORS])
            comment += _AND_GROUP
        for name in (LISTENER, GATE):
            if uid_of(name) is None:
                options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
                run(["useradd", *options, "--shell", "/usr/sbin/nologin", "--comment", comment, name])
        if not PAM_SERVICE.exists():
            shipped = (CHECKOUT / "systemd/knime-peruser.pam").read_text(encoding="ascii")
            PAM_SERVICE.write_text(f"{shipped}# {MARK}\n", encoding="ascii")
            PAM_SERVICE.chmod(0o644)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def release(self) -> None:
        """Hold them no longer; they stay."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> bool:
        """Take away those that were made by a run; say whether they are gone, or still used by another run."""
        self.release()
        if not any(map(is_ours, (LISTENER, GATE))) and not _pam_service_is_ours():
            return True
        try:
            lock = _locked(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        made = {name: uid for name in (LISTENER, GATE) if is_ours(name) and (uid := uid_of(name)) is not None}
        try:
            wait_for(lambda: not any(processes_of(list(made.values()))), 3.0, "end of the daemons")
        except TimeoutError:
            os.close(lock)
            return False
        group_made = any(pwd.getpwnam(name).pw_gecos.endswith(_AND_GROUP) for name in made)
        for name in made:
            remove_user(name)
        if group_made:
            remove_group(OPERATORS)
        if _pam_service_is_ours():
            PAM_SERVICE.unlink()
        _LOCK.unlink()
        os.close(lock)
        return True


def _pam_service_is_ours() -> bool:
    return PAM_SERVICE.exists() and MARK in PAM_SERVICE.read_text(encoding="utf-8")


def uid_of(name: str) -> int | None:
    """Give a user's uid, None where NSS knows no such user."""
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return None


def is_ours(name: str) -> bool:
    """Say whether the user was made here, by this run or another."""
    return uid_of(name) is not None and pwd.getpwnam(name).pw_gecos.startswith(MARK)


def run_prefix() -> str:
    """Give a prefix for the names of one run, so that two runs on one machine never meet."""
    return f"kpr{secrets.token_hex(2)}-"


def _own_ids(*kinds: str) -> list[str]:
    """Return useradd's options for a range of ids that no other worker of a parallel run uses (pytest-xdist)."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1_000 * worker
    return [
        word
        for kind in kinds or ("UID", "GID")
        for word in ("-K", f"{kind}_MIN={first}", "-K", f"{kind}_MAX={first + 999}")
    ]


def free_prefix(stem: str, names: Sequence[str], made: Collection[str]) -> str | None:
    """Return the first of ``stem-``, ``stem2-`` ... with which NSS knows no such user or group but those ``made``.

    One that has names that were made comes first: an earlier run had it, and is taken back. None if all are taken.
    """
    prefixes = [f"{stem}{number}-" for number in ("", *range(2, 10))]
    free = [
        prefix
        for prefix in prefixes
        if not any(_is_known(prefix + name) for name in names if prefix + name not in made)
    ]
    used = [prefix for prefix in free if any(prefix + name in made for name in names)]
    return next(iter([*used, *free]), None)


def end_processes(uids: Sequence[int]) -> None:
    """End every process of these uids: those of accounts that were made for a run."""
    for process in list(processes_of(uids)):
        end(process, grace=2.0)


def remove_user(name: str) -> None:
    """Take a user away whom a run made, with the group of the same name; anybody else is left alone."""
    if is_ours(name):
        # --force: userdel counts zombies as processes of the user, and not every container's pid 1 reaps them.
        run(["userdel", "--force", name])
        remove_group(name)


def remove_group(name: str) -> None:
    """Take a group away if it is there."""
    if _group_exists(name):
        run(["groupdel", name])


def run(command: Sequence[str]) -> None:
    """Run a program that changes accounts, one at a time on this machine: shadow's own lock gives up early.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    lock = os.open(_CHANGES_LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(command)
    finally:
        os.close(lock)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")


_AND_GROUP: Final = f" with group {OPERATORS}"
_LOCK: Final = Path("/run/knime-peruser-lab.lock")
_CHANGES_LOCK: Final = Path("/etc/.pwd.lock")
"""The file of lckpwdf(3), which every change of an account leaves behind; flock(2) is another lock than its own."""


def _locked(how: int) -> int:
    while True:
        lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, how)
            with suppress(FileNotFoundError):
                if os.stat(_LOCK).st_ino == os.fstat(lock).st_ino:  # noqa: PTH116 - beside fstat
                    return lock
        except BlockingIOError:
            os.close(lock)
            raise
        os.close(lock)  # another run removed the file meanwhile


def _is_known(name: str) -> bool:
    return uid_of(name) is not None or _group_exists(name)


def _group_exists(name: str) -> bool:
    with suppress(KeyError):
        return bool(grp.getgrnam(name))
    return False
