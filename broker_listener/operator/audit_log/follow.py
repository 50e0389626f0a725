"""The lines that are written to the audit log from now on, over its rotations, until the reader is interrupted.

The file that is written to is known by its inode: when another one has its name, what is left of it is read first,
then whatever was rotated in between, by the number in its name.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker_listener.operator.audit_log.files import MAX_LINE, LogFile, rotated

PAUSE: Final = 0.25
"""Seconds between two looks."""
_BLOCK: Final = 1 << 20


def following(path: Path, read: Sequence[LogFile]) -> Iterator[bytes]:
    """Give each line that is written after what was read, as soon as it is whole."""
    descriptor, at = os.dup(read[-1].descriptor), read[-1].size
    try:
        while True:
            lines, at = _new_lines(descriptor, at)
            yield from lines
            if lines:
                continue
            if not _has_inode_of(path, descriptor):
                yield from _new_lines(descriptor, at)[0]  # written between the two looks
                current = _opened(path)
                yield from _rotated_between(path, descriptor, current)
                os.close(descriptor)
                descriptor, at = current, 0
            else:
                time.sleep(PAUSE)
    finally:
        os.close(descriptor)


def _new_lines(descriptor: int, at: int) -> tuple[list[bytes], int]:
    """Give the whole lines from ``at`` on, and where they end; a line that never ends is given in parts."""
    block = os.pread(descriptor, _BLOCK, at)
    end = block.rfind(b"\n") + 1
    if not end and len(block) > MAX_LINE:
        end = len(block)
    return block[:end].splitlines(keepends=True), at + end


def _opened(path: Path) -> int:
    while True:
        with suppress(FileNotFoundError):  # in mid-rotation
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        time.sleep(PAUSE)


def _rotated_between(path: Path, before: int, current: int) -> Iterator[bytes]:
    """Give the lines of the files that came after the one and were rotated before the other was opened."""
    is_later = False
    for _, name in rotated(path):
        if is_later and not _has_inode_of(name, current):
            yield from name.read_bytes().splitlines(keepends=True)
        is_later = is_later or _has_inode_of(name, before)


def _has_inode_of(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
