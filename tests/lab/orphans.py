"""Be what a container's PID 1 often is: orphans become its children, and it never waits for them.

A child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) gets the orphans of all that it has started, and what ends stays
a zombie until it waits. That needs no privilege and no PID namespace.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36


@contextmanager
def unreaped_orphans() -> Iterator[None]:
    """Have orphans of this process's children stay zombies while the block runs; then wait for those that ended."""
    before = _children()
    _adopt_orphans(1)
    try:
        yield
    finally:
        _adopt_orphans(0)
        for pid in _children() - before:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _adopt_orphans(on: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, on, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _children() -> set[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for pids in lists for pid in pids.read_text(encoding="ascii").split()}
