"""Accounts of the OS for a run: users who have never logged in, groups, the daemons' own system users.

Every account that is made here says so in its comment field, and only such accounts are removed. A user's home is
named but never made. The system users have fixed names: they are shared by the runs of one machine, so each run
holds a lock on them and the last one takes them away.
"""

import fcntl
import grp
import pwd
import secrets
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tests.lab.processes import end, processes_of

LISTENER: Final = "knime-listener"
GATE: Final = "knime-gate"
OPERATORS: Final = "knime-operators"
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
        self._noted("user", full)
        also = ["--groups", ",".join(groups)] if groups else []
        command = ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/usr/sbin/nologin"]
        run([*command, "--comment", MARK, *also, *options, full])
        account = pwd.getpwnam(full)
        user = OsUser(full, account.pw_uid, account.pw_gid, Path(account.pw_dir))
        self._users.append(user)
        return user

    def group(self, name: str) -> str:
        """Make a group; give its full name."""
        full = self.prefix + name
        self._noted("group", full)
        run(["groupadd", full])
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
    """The daemons' own accounts. Those that the machine has already are used and left as they are."""

    def __init__(self, noted: Callable[[str, str], None] = lambda _kind, _name: None) -> None:
        self._noted = noted
        self._lock: IO[bytes] | None = None

    def create(self) -> None:
        """Make what is missing of them."""
        self._lock = Path("/run/knime-peruser-lab.lock").open("ab")  # noqa: SIM115 - held until remove()
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if not _group_exists(OPERATORS):
            self._noted("group", OPERATORS)
            run(["groupadd", "--system", OPERATORS])
        for name in (LISTENER, GATE):
            if not _user_exists(name):
                self._noted("user", name)
                options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
                run(["useradd", *options, "--shell", "/usr/sbin/nologin", "--comment", MARK, name])
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def remove(self) -> None:
        """Take away those that were made by a run, unless another run uses them now."""
        if self._lock is None:
            return
        with suppress(BlockingIOError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made = [name for name in (LISTENER, GATE) if _is_ours(name)]
            for name in made:
                remove_user(name)
            if made:
                remove_group(OPERATORS)
        self._lock.close()
        self._lock = None


def run_prefix() -> str:
    """Give a prefix for the names of one run, so that two runs on one machine never meet."""
    return f"kpr{secrets.token_hex(2)}-"


def end_processes(uids: Sequence[int]) -> None:
    """End every process of these uids: those of accounts that were made for a run."""
    for process in list(processes_of(uids)):
        end(process, grace=2.0)


def remove_user(name: str) -> None:
    """Take a user away whom a run made, with the group of the same name; anybody else is left alone."""
    if _is_ours(name):
        run(["userdel", name])
        remove_group(name)


def remove_group(name: str) -> None:
    """Take a group away if it is there."""
    if _group_exists(name):
        run(["groupdel", name])


def run(command: Sequence[str]) -> None:
    """Run a program of the host.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")


def _is_ours(name: str) -> bool:
    return _user_exists(name) and pwd.getpwnam(name).pw_gecos == MARK


def _user_exists(name: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


def _group_exists(name: str) -> bool:
    with suppress(KeyError):
        return bool(grp.getgrnam(name))
    return False
