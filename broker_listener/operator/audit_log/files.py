"""The files of an audit log, oldest first, held open: a rotation while they are read takes none of them away.

``audit.jsonl`` is written to; ``audit.jsonl.N`` was rotated and begins with record N. Nothing here trusts what is in
them; of a line no more is held than a record can have.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker_listener.operator.outcome import Outcome, Stopped

MAX_LINE: Final = 16_384
"""Bytes read of one line; the helper's records have at most 8,192."""
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class LogFile:
    """One open file. ``first`` is the number in its name, None where it is the one that is written to."""

    path: Path
    descriptor: int
    size: int
    first: int | None


@contextmanager
def opened(path: Path) -> Iterator[tuple[LogFile, ...]]:
    """Open the log and its rotated files, oldest first.

    Raises:
        Stopped: they cannot be read, or there is none.
    """
    files: list[LogFile] = []
    try:
        # The one that is written to first: should it be rotated meanwhile, it is found again under its new name.
        current = _open(path, None)
        for first, name in rotated(path):
            file = _open(name, first)
            if file and current and os.path.samestat(os.fstat(file.descriptor), os.fstat(current.descriptor)):
                os.close(current.descriptor)
                current = None
            files += [file] if file else []
        files += [current] if current else []
        if not files:
            raise Stopped(Outcome.FINDING, f"{path}: no audit log is there: has the helper ever run?")
        yield tuple(files)
    finally:
        for file in files:
            os.close(file.descriptor)


def rotated(path: Path) -> list[tuple[int, Path]]:
    """Give the rotated files with the number of their first record, oldest first."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.name.startswith(f"{path.name}.")]
    except OSError as error:
        raise unreadable(path.parent, error) from None
    numbers = [name.removeprefix(f"{path.name}.") for name in names]
    return sorted((int(n), path.with_name(f"{path.name}.{n}")) for n in numbers if n.isascii() and n.isdigit())


def lines(file: LogFile) -> Iterator[bytes]:
    """Give the lines that were there when it was opened, newline included; what is too long for a record is cut."""
    at, rest = 0, b""
    while at < file.size:
        block = os.pread(file.descriptor, min(_BLOCK, file.size - at), at)
        if not block:  # it was truncated meanwhile
            break
        at += len(block)
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line[:MAX_LINE] + b"\n"
        rest = rest[:MAX_LINE]
    if rest:
        yield rest


def unreadable(path: Path, error: OSError) -> Stopped:
    """Say why the log cannot be read."""
    if isinstance(error, PermissionError):
        return Stopped(Outcome.NOT_PERMITTED, f"{path}: may be read by root and group adm alone; run it as one of them")
    return Stopped(Outcome.FINDING, f"{path}: cannot be read: {error.strerror}")


def _open(path: Path, first: int | None) -> LogFile | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from None
    return LogFile(path, descriptor, _settled_size(descriptor), first)


def _settled_size(descriptor: int) -> int:
    """Give the size; where the last line has no end yet, once it had the time to be written."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        time.sleep(0.1)
        size = os.fstat(descriptor).st_size
    return size
