"""The file in the listener's state directory (systemd's STATE_DIRECTORY) that says who was started before.

It is read once and written now and then, whole, under another name and then renamed, in a thread of its own: a disk
that hangs holds up nobody. Whatever is wrong with it is a warning: without it the listener knows as little as on its
first day. The directory is the listener's, so anything may be found there: only a regular file is read, up to a bound.
"""

import logging
import os
import stat
import threading
from pathlib import Path
from typing import Final

from broker_listener.limited_log import LimitedLog
from broker_listener.started_before import MAX_SIZE, NotReadable, StartedBefore, from_text

LOG: Final = logging.getLogger(__name__)
NAME: Final = "started-before"


class StateFile:
    """Reads and writes ``started``; without a state directory it does neither."""

    def __init__(self, directory: str | None) -> None:
        self._directory = None if not directory else Path(directory.split(":")[0])
        self._writing: threading.Thread | None = None
        self._failed = threading.Event()
        self._limited = LimitedLog(LOG, 1)
        self.started = self._read()

    def write(self) -> None:
        """Begin to write what has changed, unless the last write is not done."""
        if self._directory is None or self._is_writing():
            return
        if self._failed.is_set():  # the next change, or this one again, is worth another try
            self._failed.clear()
        elif not self.started.changed:
            return
        self.started.changed = False
        arguments = (self._directory, self.started.text().encode())
        # Not the loop's pool: at its end the loop waits for that, and a disk may hang. A daemon thread is left alone.
        self._writing = threading.Thread(target=self._write, args=arguments, name=NAME, daemon=True)
        try:
            self._writing.start()
        except RuntimeError as error:  # the limit of threads
            self._writing = None
            self._not_written(str(error))

    def close(self, seconds: float) -> None:
        """Write what is not written yet, within that time."""
        if self._writing is not None:
            self._writing.join(seconds / 2)
        self.write()
        if self._writing is not None:
            self._writing.join(seconds / 2)

    def _is_writing(self) -> bool:
        return self._writing is not None and self._writing.is_alive()

    def _read(self) -> StartedBefore:
        if self._directory is None:
            LOG.info("event=no_state_directory advice='who was started before is forgotten at a restart'")
            return StartedBefore()
        path = self._directory / NAME
        try:
            return from_text(_bytes_of(path))
        except FileNotFoundError:
            return StartedBefore()
        except (OSError, NotReadable) as error:
            why = error.strerror if isinstance(error, OSError) else error
            LOG.warning("event=state_not_read file=%s reason=%r advice='it is begun without'", path, str(why))
            return StartedBefore()

    def _write(self, directory: Path, text: bytes) -> None:
        try:
            _replace(directory, text)
        except OSError as error:
            self._not_written(str(error.strerror))

    def _not_written(self, reason: str) -> None:
        self._failed.set()
        self._limited.warning("event=state_not_written directory=%s reason=%r", self._directory, reason)


def _bytes_of(path: Path) -> bytes:
    """Return at most one byte more than is allowed; opening must not wait for a FIFO's writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotReadable("it is no regular file")
        return file.read(MAX_SIZE + 1)


def _replace(directory: Path, text: bytes) -> None:
    new = directory / f".{NAME}.new"
    new.unlink(missing_ok=True)  # of a listener that was killed
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    new.rename(directory / NAME)
