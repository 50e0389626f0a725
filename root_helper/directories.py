"""The home, workspace and temp directory of an account, made and checked by descriptor.

It trusts parents that are root's and writable by nobody else, all the way up to /, and nothing that lies in them. As
root it follows no symlink but root's own, works by descriptor, crosses no mount, gives nothing away but what it made
itself, and repairs nothing but the ACLs at the top of a directory that is the account's already. A home that is there
is looked at as the user only: on NFS, root is nobody.
"""

import errno
import fcntl
import os
import subprocess  # only mkhomedir_helper: an absolute path, no shell, no environment
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Final

from protocol.messages import RefusedReason
from root_helper.acl import PrivateAcl
from root_helper.policy import Account
from root_helper.trusted_files import trusted_directory_faults

_NAME_ONLY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""To look at a directory: needs no right to it and starts nothing in it (open(2), O_PATH), but mounts an automount."""
_READABLE: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SKELETON: Final = "/etc/skel"  # mkhomedir_helper's own, mkhomedir_helper(8)
_MKHOMEDIR: Final = "/usr/sbin/mkhomedir_helper"
_MARKER_EXPLAINS: Final = 600.0
"""Seconds after a start within which a root-owned home may be what it left; later it is an administrator's work."""
_MAX_DEPTH: Final = 64
"""Of a tree to remove: three descriptors a level, deeper than any skeleton."""
_NO_HOME: Final = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Conflict(Exception):
    """What is there must not be used and is not ours to repair; ``reason`` is the refusal."""

    def __init__(self, reason: RefusedReason, path: str, fault: str) -> None:
        super().__init__(f"{path[:256]!a}: {fault}")
        self.reason = reason


class NotPrepared(Exception):
    """The host could not do it now; asked again, what was left half made is removed first."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(f"{path[:256]!a}: {fault}")


_home_conflict: Final = partial(Conflict, RefusedReason.HOME_CONFLICT)
_workspace_conflict: Final = partial(Conflict, RefusedReason.WORKSPACE_CONFLICT)


def ensure_home(account: Account, home_roots: Sequence[str]) -> None:
    """See to it that the account's home is there, is its own and is writable by nobody else.

    Raises:
        Conflict: ``home_conflict``; nothing was changed.
        NotPrepared: the host could not.
    """
    home = account.home
    if not home.isprintable() or home != os.path.normpath("/" + home.lstrip("/")):
        raise _home_conflict(home, "is no absolute, normalised, printable path; correct the account's home")
    with _os_errors_about(home):
        found = _home_as_the_user_sees_it(account)
        if found is None or found.st_uid == 0:
            found = _make_home(account, home_roots, half_made=found is not None)
        if found.st_uid != account.uid:
            raise _home_conflict(home, f"belongs to uid {found.st_uid}, not to {account.uid}")
        if found.st_mode & 0o022:
            raise _home_conflict(home, f"others can write it, mode {found.st_mode & 0o7777:04o}; chmod go-w")


def ensure_private(parent: str, name: str, account: Account, acl: PrivateAcl) -> int:
    """Give an open descriptor of the account's own directory of that name, made or taken over, with these ACLs.

    Raises:
        Conflict: ``workspace_conflict``; nothing was changed.
        NotPrepared: the host could not.
    """
    if not name or name.startswith(".") or "/" in name:
        raise ValueError(f"no directory name: {name!a:.80}")
    with _os_errors_about(f"{parent}/{name}"), _held(_open_trusted(parent, NotPrepared)) as within:
        try:
            found = os.open(name, _NAME_ONLY, dir_fd=within)
        except FileNotFoundError:
            return _make_private(within, name, account, acl)
        except NotADirectoryError:
            raise _workspace_conflict(f"{parent}/{name}", "is no directory") from None
        with _held(found):
            if _mount_id(found) != _mount_id(within):
                raise _workspace_conflict(f"{parent}/{name}", "is a mount point")
            owner = os.fstat(found).st_uid
            if owner != account.uid:
                raise _workspace_conflict(f"{parent}/{name}", f"belongs to uid {owner}, not to {account.uid}")
            with _acting_as(account):
                acl.apply(found)
                return os.open(".", _READABLE, dir_fd=found)


def _make_private(within: int, name: str, account: Account, acl: PrivateAcl) -> int:
    """Make it under another name; its own appears only when it is complete."""
    staging = f".{name}.new"  # no account's name starts with a dot
    _remove(within, staging)
    # PRIVILEGED: in a directory that only root can write.
    os.mkdir(staging, 0o700, dir_fd=within)
    with _held(os.open(staging, _READABLE, dir_fd=within)) as made:
        acl.apply(made)
        # PRIVILEGED: by descriptor, of the directory just made; last, so that until now the account could change
        # nothing here.
        os.fchown(made, account.uid, account.gid)
        # PRIVILEGED: nothing has the name (rename(2) would replace an empty directory): the caller looked, and only
        # root, one start of an account at a time, can have made it since.
        os.rename(staging, name, src_dir_fd=within, dst_dir_fd=within)
        return os.dup(made)  # not inheritable either


def _make_home(account: Account, home_roots: Sequence[str], *, half_made: bool) -> os.stat_result:
    """Let PAM's mkhomedir_helper make it; the marker beside it says until the end that it may be half made."""
    path, name = os.path.split(account.home)
    if name.startswith(".") or not any(PurePosixPath(path).is_relative_to(root) for root in home_roots):
        fault = "belongs to root" if half_made else "is missing and not below users.home_roots; make it or correct them"
        raise _home_conflict(account.home, fault)
    marker_name = f".{name}.pending"
    with (
        _held(_open_trusted(path, _home_conflict)) as within,
        _held(_open_marker(within, marker_name, account, half_made=half_made)) as marker,
    ):
        if half_made:
            _remove_half_made(within, name, account, marker)
        os.utime(marker)  # explains from here on what a kill leaves
        os.fsync(marker)
        _must_be_missing(within, name, account)
        status = _run_mkhomedir(account, marker)
        found = _home_as_the_user_sees_it(account)
        # Owner and content decide: its status is 6 for a good home made without CAP_FOWNER, too, and PAM 1.7 gives a
        # home away that it could not fill.
        if found is None or found.st_uid != account.uid or not _holds_the_skeleton(account):
            if found is not None and found.st_uid == account.uid:
                _remove(within, name)
            raise NotPrepared(account.home, f"mkhomedir_helper did not finish it (status {status}); disk or quota?")
        # PRIVILEGED: our own marker, in a directory that only root can write.
        os.unlink(marker_name, dir_fd=within)
        return found


def _open_marker(within: int, marker_name: str, account: Account, *, half_made: bool) -> int:
    """Open and lock the marker; a home that is there already needs one that was there before."""
    create = 0 if half_made else os.O_CREAT
    try:
        # PRIVILEGED: in a directory that only root can write, so that nobody else can claim a home half made.
        marker = os.open(marker_name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | create, 0o600, dir_fd=within)
    except FileNotFoundError:
        raise _home_conflict(account.home, "belongs to root") from None
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(marker)
        raise NotPrepared(account.home, "another start is making it") from None
    return marker


def _remove_half_made(within: int, name: str, account: Account, marker: int) -> None:
    with _held(os.open(name, _NAME_ONLY, dir_fd=within)) as home:
        facts = os.fstat(home)
    if facts.st_uid != 0 or facts.st_ctime - os.fstat(marker).st_mtime > _MARKER_EXPLAINS:
        raise _home_conflict(account.home, "changed since the start that left it half made; remove it and the marker")
    os.utime(marker)
    _remove(within, name)


def _must_be_missing(within: int, name: str, account: Account) -> None:
    """Ask in the one way that a file server cannot answer from memory: what is there is not ours to remove later."""
    try:
        os.mkdir(name, 0o700, dir_fd=within)
    except FileExistsError:
        raise NotPrepared(account.home, "was made by somebody else since it was found missing") from None
    os.rmdir(name, dir_fd=within)


def _run_mkhomedir(account: Account, marker: int) -> int:
    try:
        # PRIVILEGED: makes the home as root, in a directory that only root can write. It inherits the marker's lock:
        # should it outlive us, nobody takes what it is making for half made.
        return subprocess.run(  # noqa: S603 - an argument list; the name was matched against the grammar
            [_MKHOMEDIR, account.name, "0077"],
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[marker],
            check=False,
        ).returncode
    except FileNotFoundError as error:
        raise NotPrepared(account.home, f"{_MKHOMEDIR} is missing; install libpam-modules-bin") from error


def _holds_the_skeleton(account: Account) -> bool:
    """Tell whether every file of the skeleton directory is in the home just made, of the same size."""
    with _acting_as(account), suppress(OSError):
        for directory, _, names in os.walk(_SKELETON):
            for source in (os.path.join(directory, name) for name in names):
                copy = os.path.join(account.home, os.path.relpath(source, _SKELETON))
                if os.lstat(copy).st_size != os.lstat(source).st_size:
                    return False
        return True
    return False


def _home_as_the_user_sees_it(account: Account) -> os.stat_result | None:
    with _acting_as(account):
        try:
            home = os.open(account.home, _NAME_ONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _NO_HOME:
                raise _home_conflict(account.home, f"is no directory: {error.strerror}") from error
            raise
        with _held(home):
            return os.fstat(home)


def _open_trusted(path: str, fault: Callable[[str, str], Exception]) -> int:
    """Open a directory that, like all on the way to it, is root's and writable by nobody else."""
    if faults := trusted_directory_faults(path):
        raise fault(path, f"not root's alone: {faults[0]!a}")
    # Nobody but root could make the path lead elsewhere since it was checked. From here on: by descriptor.
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _remove(within: int, name: str, depth: int = 0) -> None:
    """Remove what has the name, if anything; ``within`` is a directory that only root can write."""
    try:
        # PRIVILEGED: unlink(2) follows no symlink, and of a hard link takes the name only.
        os.unlink(name, dir_fd=within)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        _remove_directory(within, name, depth)


def _remove_directory(within: int, name: str, depth: int) -> None:
    with _held(os.open(name, _NAME_ONLY, dir_fd=within)) as directory:
        if depth == _MAX_DEPTH or _mount_id(directory) != _mount_id(within):
            raise OSError(errno.EBUSY, f"{name!a:.80} was left over and is a mount or too deep; remove it by hand")
        path = f"/proc/self/fd/{directory}"
        # PRIVILEGED: by descriptor. Once it is root's alone, its former owner can put nothing more into it, and
        # root needs no capability to empty it.
        os.chown(path, 0, 0)
        os.chmod(path, 0o700)
        with _held(os.open(".", _READABLE, dir_fd=directory)) as readable, os.scandir(readable) as entries:
            for entry in entries:
                _remove(readable, entry.name, depth + 1)
    # PRIVILEGED: in a directory that only root can write; a mount point in its place is refused by rmdir(2).
    os.rmdir(name, dir_fd=within)


@contextmanager
def _acting_as(account: Account) -> Iterator[None]:
    """Be the account to the file systems (credentials(7)); root's real and saved ids keep its signals away.

    For one thread and a moment only: the way back is open. The final way down is elsewhere.
    """
    groups = os.getgroups()
    try:
        # PRIVILEGED: gives root's rights up, the groups first, which only root may set.
        os.setgroups(account.groups)
        os.setegid(account.gid)
        os.seteuid(account.uid)
        yield
    finally:
        # PRIVILEGED: takes root's rights back; where that fails the exception ends the start.
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _mount_id(directory: int) -> str:
    """Tell mounts apart, also bind mounts of one device, which st_dev does not: proc(5), /proc/[pid]/fdinfo."""
    with open(f"/proc/self/fdinfo/{directory}", encoding="ascii") as facts:
        return next(line for line in facts if line.startswith("mnt_id:"))


@contextmanager
def _held(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _os_errors_about(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotPrepared(path, error.strerror or type(error).__name__) from error
