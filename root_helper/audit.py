"""The record of every request, start and end: append-only JSON lines, each with the hash of the one before.

It trusts the directory that it writes to, which only root may write. It fails closed: where a record cannot be
written, ``AuditUnavailable`` is raised and nothing is started; ends are kept in memory, and the log is tried again,
also one that cannot be opened or continued. What a caller can cause at will is bounded.
"""

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from protocol.record import FIRST_PREV, Event, fault_in, sealed
from root_helper.limits import Bound

_ANCHOR_RECORDS: Final = 1000
_ANCHOR_SECONDS: Final = 600.0
_SUMMARY_SECONDS: Final = 60.0
_LONGEST_RECORD: Final = 8192
_MOST_OWED: Final = 1000
_FAULTS: Final = (OSError, ValueError, LookupError, TypeError, RecursionError)
"""What a file system and a damaged file can make of reading or writing a record."""
_log: Final = logging.getLogger("audit")
T = TypeVar("T")


class AuditUnavailable(Exception):
    """The record could not be written; the text names the file and the reason."""


class AuditLog:
    """The one writer of the log. ``adm`` is the gid that may read it."""

    def __init__(self, path: str, *, rotate_size: int, keep_days: int, adm: int, host: str) -> None:
        """Open the log, repair a torn last line, take up the chain; where that fails, it is tried again."""
        self._path, self._rotate_size, self._keep = path, rotate_size, keep_days * 86400
        self._adm, self._host = adm, host
        self._seq, self.prev, self._first = 0, FIRST_PREV, 1
        self._owed: deque[tuple[float, Event]] = deque()
        self._lost = 0
        self._bounds, self._summary_due = {"refused_peer": Bound(), "": Bound()}, 0.0
        self._anchored, self._anchor_due = 0, 0.0
        self._file = -1
        self.last: dict[str, Any] = {}
        """The record that the log ended with when it was taken up."""
        self.fault: str | None = None
        """Why nothing can be written now."""
        self.is_writable()

    def is_writable(self) -> bool:
        """Open what could not be opened, write what is owed, and tell whether the log is in order."""
        with contextlib.suppress(AuditUnavailable):
            self._guarded(self._catch_up)
        return self.fault is None

    def record(self, event: Event) -> int:
        """Write what always is written; give its seq. It is on disk after ``sync``.

        Raises:
            AuditUnavailable: it is not written, and nothing must follow from it.
        """
        self._guarded(self._catch_up)
        return self._guarded(lambda: self._write(event))

    def record_end(self, event: Event) -> int:
        """Write an end, or keep it until the log can be written again; give its seq, or the next one."""
        try:
            return self.record(event)
        except AuditUnavailable:
            self._owe(event)
            _log.error("a record is kept in memory user=%s event=%s", event.user, event.event)
            return self._seq + len(self._owed)

    def _owe(self, event: Event) -> None:
        if len(self._owed) >= _MOST_OWED:
            self._owed.popleft()
            self._lost += 1
        self._owed.append((time.time(), event))

    def note(self, event: Event, now: float) -> None:
        """Write what a caller can cause at will, within the bound; the rest is counted. ``now``: monotonic seconds."""
        bound = self._bounds.get(event.event, self._bounds[""])  # our own listener's traffic hides no stranger
        if bound.allows(event.reason or event.decision or event.event, now):
            with contextlib.suppress(AuditUnavailable):  # nothing follows from it
                self.record(event)

    def tick(self, now: float) -> None:
        """Write what is due by time: ends kept in memory, the count of what was left out, the anchor."""
        self.is_writable()
        if now >= self._summary_due:
            self._summary_due = now + _SUMMARY_SECONDS
            counts = {name: count for bound in self._bounds.values() for name, count in bound.take().items()}
            if counts:
                reason = " ".join(f"{name}={count}" for name, count in sorted(counts.items()))
                self.record_end(Event(event="suppressed", reason=reason))
        if now >= self._anchor_due and self._file >= 0:
            self._anchor_due = now + _ANCHOR_SECONDS
            self._anchor()

    def sync(self) -> None:
        """Bring what was written to the disk.

        Raises:
            AuditUnavailable: it may not be there.
        """
        self._guarded(lambda: os.fdatasync(self._file))

    def _guarded(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except _FAULTS as error:
            fault = f"audit log {self._path}: {error}"[:300]
            if self.fault is None:
                _log.error("nothing is started until this is mended; it is tried again every few seconds: %s", fault)
                self._owe(Event(event="log_failed", reason=str(error)[:200]))
            self.fault = fault
            raise AuditUnavailable(fault) from error

    def _catch_up(self) -> None:
        """Open the file if it is not, and write what is owed, the oldest first."""
        if self._file < 0:
            self._open()
        while self._owed:
            at, event = self._owed[0]
            self._write(event, at)
            self._owed.popleft()
        if self._lost:
            self._write(Event(event="suppressed", reason=f"ends_not_kept={self._lost}"))
            self._lost = 0
        if self.fault:
            self.fault = None
            _log.warning("the audit log can be written again")

    def _open(self) -> None:
        file = self._opened(self._path)
        try:
            self._take_up(file)
        except _FAULTS:
            os.close(file)
            raise
        self._file = file
        self._anchor()

    def _opened(self, path: str) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, 0o640)
        try:
            os.fchmod(file, 0o640)
            # PRIVILEGED: by descriptor, in a directory that only root can write: auditors of group adm may read.
            os.fchown(file, 0, self._adm)
        except OSError:
            os.close(file)
            raise
        return file

    def _take_up(self, file: int) -> None:
        """Go on where the last whole record ends; what a power cut left of the next one is cut off, and said."""
        self._size = os.fstat(file).st_size
        torn = self._continue(file, self._size) if self._size else 0
        if not self._seq and (rotated := self._rotated()):
            with open(f"{self._path}.{max(rotated)}", "rb") as newest:  # a crash in mid-rotation
                self._continue(newest.fileno(), os.fstat(newest.fileno()).st_size)
            self._first = self._seq + 1
        if torn:
            self._size -= torn
            os.ftruncate(file, self._size)
            said = f"a torn last line of {torn} bytes was cut off"
            self._owed.appendleft((time.time(), Event(event="log_repaired", reason=said)))

    def _continue(self, file: int, size: int) -> int:
        """Take seq and hash of the file's last whole record; give the bytes that stand after it."""
        tail = os.pread(file, _LONGEST_RECORD, max(0, size - _LONGEST_RECORD))
        end = tail.rfind(b"\n") + 1
        if end:
            last = json.loads(tail[tail.rfind(b"\n", 0, end - 1) + 1 : end])
            if fault := fault_in(last, seq=int(last["seq"]), prev=last["prev"]):
                raise ValueError(f"its last record is damaged, move the file away: {fault}")
            self._seq, self.prev, self.last = last["seq"], last["hash"], last
            self._first = int(json.loads(os.pread(file, _LONGEST_RECORD, 0).partition(b"\n")[0])["seq"])
        elif size > _LONGEST_RECORD:
            raise ValueError("no record ends in its last 8 KiB, move the file away")
        return len(tail) - end

    def _rotated(self) -> list[int]:
        """Give the first seq of each rotated file, which is the end of its name."""
        directory, name = os.path.split(self._path)
        ends = [entry.removeprefix(f"{name}.") for entry in os.listdir(directory) if entry.startswith(f"{name}.")]
        return [int(end) for end in ends if end.isdigit()]

    def _write(self, event: Event, at: float | None = None) -> int:
        if self._size >= self._rotate_size:
            self._rotate()
        self._check_file()
        line, digest = sealed(event, seq=self._seq + 1, prev=self.prev, time=at or time.time(), host=self._host)
        written = os.write(self._file, line)
        if written != len(line):
            os.ftruncate(self._file, self._size)
            raise OSError(f"{written} of {len(line)} bytes written: is the disk full?")
        self._seq, self.prev, self._size = self._seq + 1, digest, self._size + written
        if self._seq - self._anchored >= _ANCHOR_RECORDS:
            self._anchor()
        return self._seq

    def _check_file(self) -> None:
        ours, there = os.fstat(self._file), os.stat(self._path, follow_symlinks=False)
        if not os.path.samestat(ours, there) or ours.st_size != self._size:
            raise OSError("it was replaced or changed by somebody else; look at it, then restart the helper")

    def _rotate(self) -> None:
        """Begin another file; until that is open nothing has changed, so that a failure is tried again."""
        self._check_file()
        os.fdatasync(self._file)
        new = self._opened(f"{self._path}.new")
        try:
            os.rename(self._path, f"{self._path}.{self._first}")
            os.rename(f"{self._path}.new", self._path)
        except OSError:
            os.close(new)
            raise
        os.close(self._file)
        self._file, self._first, self._size = new, self._seq + 1, 0
        self._anchor()
        self._forget_old()

    def _forget_old(self) -> None:
        for first in self._rotated():
            with contextlib.suppress(OSError):  # kept longer than it must be; the records go on
                if os.stat(f"{self._path}.{first}").st_mtime < time.time() - self._keep:
                    os.unlink(f"{self._path}.{first}")

    def _anchor(self) -> None:
        """Tell the journal where the chain is: forwarded off the host, it proves what a rewrite would hide."""
        self._anchored = self._seq
        _log.info("audit-anchor %d %s", self._seq, self.prev)
