"""Standard input and outputs of a command: who reads may go away, a disk may be full, a descriptor may be closed.

Python itself ends such a command with a notice of its own and status 120, or with a traceback. And a file that is
opened while a standard descriptor is closed gets its number: what is printed then goes into that file.
"""

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

READER_GONE: Final = 141
"""128 and SIGPIPE, as shells have it of a program that does not ignore that signal."""
FAILED: Final = 1


class OutputLost(Exception):
    """Standard output or error takes nothing. It is no OSError: to click and rich a broken pipe means other things."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.reader_gone = error.errno == errno.EPIPE


class _Output(io.TextIOWrapper):
    """An output that raises OutputLost where it takes nothing."""

    def write(self, text: str, /) -> int:
        """Write; raises OutputLost."""
        try:
            return super().write(text)
        except OSError as error:
            raise OutputLost(error) from None

    def flush(self) -> None:
        """Flush; raises OutputLost."""
        try:
            super().flush()
        except OSError as error:
            raise OutputLost(error) from None

    def close(self) -> None:
        """Leave the stream beneath open: it is Python's own."""


def open_all() -> None:
    """Give /dev/null to each standard descriptor that is closed; call it before anything else is opened."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def run(command: Callable[[], int], name: str) -> int:
    """Run a command and return its exit status; one whose output is lost ends there, with a status that says so.

    What a terminal's charset lacks is printed as an escape.
    """
    open_all()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_checked(stream) for stream in before)
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    except OutputLost as lost:
        return _ended(lost, name)
    finally:
        sys.stdout, sys.stderr = before


def silence() -> None:
    """Have /dev/null take from now on what standard output and error do not: Python flushes both at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _ended(lost: OutputLost, name: str) -> int:
    if not lost.reader_gone:
        with suppress(OSError):  # it may be standard error that takes nothing
            os.write(2, f"{name}: the output cannot be written: {lost}\n".encode())
    silence()
    return READER_GONE if lost.reader_gone else FAILED


def _checked(stream: TextIO) -> TextIO:
    """Return an output that tells of its loss; what stands for one in a test, and has no bytes beneath, as it is."""
    if not hasattr(stream, "buffer"):
        return stream
    buffering = getattr(stream, "line_buffering", False)
    return _Output(stream.buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=buffering)
