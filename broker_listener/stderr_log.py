"""The daemon's own log, on stderr, which never holds up who logs: a full pipe costs lines, not time.

journald that stopped reading blocks a writer after some 20,000 lines, and a blocked loop misses the broker's
heartbeats. So a thread writes, what it cannot keep up with is dropped, and the next line says how much that was.
Every record becomes one line of printable ASCII, whatever stands in it.
"""

import logging
import os
import queue
import re
import sys
import threading
from typing import Final

MAX_WAITING: Final = 1000
MAX_LINE: Final = 8192
_STOP: Final = b""


class StderrLog(logging.Handler):
    """Writes to the descriptor from a thread of its own."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Begin to write; under journald (sd-daemon(3)) each line has its priority in front."""
        super().__init__()
        self._descriptor = sys.stderr.fileno() if descriptor is None else descriptor
        self._priorities = "JOURNAL_STREAM" in os.environ
        self._lines: queue.Queue[bytes] = queue.Queue(MAX_WAITING)
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()
        self.dropped = 0
        """Lines dropped since the start."""
        self._told = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Give the record to the writer, or drop it."""
        try:
            line = self._line(record)
            if self.dropped != self._told and not self._lines.full():
                count, self._told = self.dropped - self._told, self.dropped
                self._lines.put_nowait(b"log_lines_dropped=%d\n" % count)
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1
        except (TypeError, ValueError):  # a log call of ours that does not fit its own text
            self.dropped += 1

    def close(self) -> None:
        """Write what waits, for at most a second."""
        if self._writer.is_alive():
            try:
                self._lines.put(_STOP, timeout=0.5)
            except queue.Full:
                return
            self._writer.join(0.5)
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        text = record.getMessage()
        if record.exc_info:
            text += " | " + logging.Formatter().formatException(record.exc_info)
        text = _UNPRINTABLE.sub(" | ", text)[:MAX_LINE]
        level = _PRIORITIES.get(record.levelno, "<6>") if self._priorities else f"{record.levelname} "
        return f"{level}{text}\n".encode("ascii", "backslashreplace")

    def _write(self) -> None:
        while (line := self._lines.get()) is not _STOP:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                self.dropped += 1


_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]+")
_PRIORITIES: Final = {logging.ERROR: "<3>", logging.WARNING: "<4>", logging.INFO: "<6>", logging.DEBUG: "<7>"}
