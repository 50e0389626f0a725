"""Files and directories that nobody but root can have written: how the helper tells, before it believes them.

It trusts the kernel's answers alone. A path is walked from ``/``, through every symbolic link, and each directory on
the way must be root's and writable by nobody else; a sticky directory is no excuse, since in it anybody can be first.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from protocol.settings import SettingsError

_MAX_BYTES: Final = 1_048_576
_MAX_LINKS: Final = 40  # as the kernel, path_resolution(7)


def trusted_directory_faults(path: str) -> list[str]:
    """Say why somebody but root could put something else at the directory's path; empty where nobody can."""
    return _path_faults(path, stat.S_IFDIR, "a directory")


def trusted_program_faults(path: str) -> list[str]:
    """Say why somebody but root could change the program at the path, or why it is none."""
    faults = _path_faults(path, stat.S_IFREG, "a regular file")
    if not faults and not os.stat(path).st_mode & 0o111:
        faults.append(f"{path}: is not executable: chmod 0755 {path}")
    return faults


def root_owned_text(path: str, *, others_may_read: bool) -> str:
    """Give the content of a file that only root can have written.

    Raises:
        SettingsError: it is not such a file, or not UTF-8. The text holds nothing of the content.
    """
    with opened_root_owned(path, others_may_read=others_may_read) as descriptor:
        data = os.read(descriptor, _MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise SettingsError([f"{path}: at most {_MAX_BYTES} bytes are expected"])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise SettingsError([f"{path}: text in UTF-8 is expected"]) from None


@contextmanager
def opened_root_owned(path: str, *, others_may_read: bool) -> Iterator[int]:
    """Open a regular file for reading, once; what is checked is what is read.

    Raises:
        SettingsError: somebody but root could have written it, or may read it and must not.
    """
    if faults := trusted_directory_faults(os.path.dirname(os.path.abspath(path))):
        raise SettingsError(faults)
    try:
        # O_NONBLOCK: a FIFO in its place must not make root wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        why = "a symbolic link, a regular file is expected" if error.errno == errno.ELOOP else error.strerror
        raise SettingsError([f"{path}: cannot be read: {why}"]) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SettingsError([f"{path}: a regular file is expected"])
        if fault := _fault(path, status, forbidden=0o022 if others_may_read else 0o077):
            raise SettingsError([fault])
        yield descriptor
    finally:
        os.close(descriptor)


def _path_faults(path: str, kind: int, kind_name: str) -> list[str]:
    faults: list[str] = []
    try:
        for place, status in _walked(path):
            faults += filter(None, [_fault(place, status, forbidden=0o022)])
    except OSError as error:
        return [*dict.fromkeys(faults), f"{path}: {kind_name} is expected: {error.strerror}"]
    if stat.S_IFMT(status.st_mode) != kind:
        faults.append(f"{path}: {kind_name} is expected")
    return list(dict.fromkeys(faults))


def _walked(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Give ``/`` and all that a look-up of the absolute path passes through, links' targets included."""
    at, rest, links = "/", path.split("/")[::-1], 0
    yield at, os.lstat(at)
    while rest:
        # ``at`` holds no link, so that ".." in a link's target may be taken away as text.
        place = os.path.normpath(os.path.join(at, rest.pop()))
        status = os.lstat(place)
        if not stat.S_ISLNK(status.st_mode):
            at = place
            yield at, status
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(place)
        at = "/" if target.startswith("/") else at
        rest.extend(target.split("/")[::-1])


def _fault(path: str, status: os.stat_result, *, forbidden: int) -> str | None:
    if status.st_uid != 0:
        return f"{path}: belongs to uid {status.st_uid}, root is expected: chown root {path}"
    if stat.S_IMODE(status.st_mode) & forbidden:
        cure = "chmod go-w" if forbidden == 0o022 else "chmod 0600"
        what = "write" if forbidden == 0o022 else "read or write"
        return f"{path}: mode {stat.S_IMODE(status.st_mode):04o} lets others {what} it: {cure} {path}"
    return None
