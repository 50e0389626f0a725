"""The helper's own log, to stderr, one line an entry; it never waits for whoever reads it.

It trusts no text: an entry is one line of ASCII, cut. A journal or a pipe that is not read any more would stop the
supervisor at its next line. What cannot be written at once is left out and counted; the audit log is another matter,
and never leaves out a start or an end.
"""

import contextlib
import logging
import os
import select
import socket
import stat
from typing import Final

_LONGEST: Final = 2048  # below PIPE_BUF, so that a pipe that is writable takes a line whole: pipe(7)


def log_to(descriptor: int) -> None:
    """Log from INFO on to the descriptor."""
    handler = _LineHandler(descriptor)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _LineHandler(logging.Handler):
    """Writes a line, or leaves it out."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self._left_out = descriptor, 0
        self._is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, with the count of those that were left out before it."""
        text = self.format(record).encode("ascii", "backslashreplace")[:_LONGEST].replace(b"\n", b"\\n")
        told = f" (lines left out before: {self._left_out})".encode("ascii") if self._left_out else b""
        self._left_out = 0 if self._written(text + told + b"\n") else self._left_out + 1

    def _written(self, line: bytes) -> bool:
        with contextlib.suppress(OSError):
            if self._is_socket:
                with socket.socket(fileno=os.dup(self._descriptor)) as stream:
                    return stream.send(line, socket.MSG_DONTWAIT) > 0
            if select.select((), (self._descriptor,), (), 0)[1]:
                return os.write(self._descriptor, line) > 0
        return False
