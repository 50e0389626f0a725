"""Directories as a host has them: trees that are root's alone, views of them by other users, mounts nobody else sees.

Everything is made below a fresh directory of /srv and taken away with it. Mounts are made in a mount namespace of a
child process (mount_namespaces(7)): they are gone when it ends, however it ends.
"""

import ctypes
import os
import pickle
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar, cast

from root_helper.policy import Account
from tests.lab.accounts import OsUser

T = TypeVar("T")

_CLONE_NEWNS: Final = 0x20000


@contextmanager
def roots_own_tree() -> Iterator[Path]:
    """Give a fresh directory, 0755, that like all above it only root can write (a sticky /tmp would not be one)."""
    tree = Path(tempfile.mkdtemp(prefix="kpr-", dir="/srv"))
    tree.chmod(0o755)
    try:
        yield tree
    finally:
        shutil.rmtree(tree)


def account_of(user: OsUser, home: Path | str | None = None) -> Account:
    """Give the account as the helper has it, with another home if one is given."""
    groups = tuple(os.getgrouplist(user.name, user.gid))
    return Account(user.name, user.uid, user.gid, groups, str(home or user.home), "/usr/sbin/nologin")


def as_user(user: OsUser | Account, command: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a line of shell as the user, with the user's groups and umask 022; ``words`` are its $1, $2 ..."""
    groups = os.getgrouplist(user.name, user.gid)
    argv = ["/bin/sh", "-c", command, "sh", *map(str, words)]
    return subprocess.run(
        argv, user=user.uid, group=user.gid, extra_groups=groups,
        umask=0o022, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip


def in_private_mounts(call: Callable[[], T]) -> T:
    """Call in a child process that may mount what it likes, and give what the call gave, picklable, or raise."""
    with tempfile.TemporaryFile() as answer:
        pid = os.fork()
        if pid == 0:
            try:
                pickle.dump(_called(call), answer)
                answer.flush()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        answer.seek(0)
        result, failure = cast("tuple[T, str | None]", pickle.load(answer))
    if failure is not None:
        raise AssertionError(failure)
    return result


def _called(call: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        _unshare_mounts()
        return call(), None
    except BaseException:  # noqa: BLE001 - pytest's own too: the parent raises what is told here
        return None, traceback.format_exc()


def _unshare_mounts() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("--make-rprivate", "/")


def mount(*words: str | Path) -> None:
    """Run the system's program of that name."""
    subprocess.run(["/usr/bin/mount", *map(str, words)], check=True)


def give_home(user: OsUser, home: Path, passwd: Path) -> None:
    """Let NSS say, in this mount namespace, that the home is the user's; the home itself is not made."""
    entries = Path("/etc/passwd").read_text(encoding="utf-8")
    passwd.write_text(entries.replace(f":{user.home}:", f":{home}:"), encoding="utf-8")
    passwd.chmod(0o644)
    mount("--bind", passwd, "/etc/passwd")


def names_in(directory: Path) -> list[str]:
    """Give the names of what is in the directory, sorted."""
    return sorted(entry.name for entry in directory.iterdir())


def facts_of(tree: Path) -> dict[str, tuple[object, ...]]:
    """Give everything about a tree that a privileged step could have changed by mistake, ACLs included."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [tree, *sorted(tree.rglob("*"))]:
        status = path.lstat()
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        link = path.readlink() if path.is_symlink() else None
        found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_nlink, xattrs, link)
    return found
