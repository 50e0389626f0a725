"""How fast a user's jobs are handed over again: which of them came back, and the pause between two.

A job that no executor takes circulates between the consumers of the queue and meets us again, so one return proves
nothing, and pauses per job would turn their order round: the pace is the user's. What is remembered of jobs is bounded
and steers the pause and the order only, never parking, dropping or a search for duplicates. Time is an argument.
"""

from array import array
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, NamedTuple

ACCEPTED_AFTER: Final = 0.2
"""Seconds after which a hand-over that is not back counts as accepted (300 executors pass a job round in 60 ms)."""
GROWS_AFTER: Final = 0.3
"""Seconds without an acceptance after which returns make the pause grow."""
GROWTH: Final = 1.05
JITTER: Final = 0.25
MAX_SEEN: Final = 8192
SEEN_FOR: Final = 600.0
MAX_OUT: Final = 64
"""Hand-overs of a user that are watched at a time; of a flood that is a sample, which is enough."""


def digest(body: bytes, message_id: bytes | None) -> bytes:
    """Give what a job is recognised by when it comes back: 64 bits."""
    whole = blake2b(body, digest_size=8)  # of 8,192 jobs two alike are one in 10^12; it steers a pause
    if message_id is not None:
        whole.update(message_id)
    return whole.digest()


class Sight(NamedTuple):
    """A job as it was seen before: its place in the order, and whether it is back from a hand-over.

    ``since`` is when it was first seen or came back last; the broker's redelivery does not change it.
    """

    key: int
    seq: int
    since: float
    handed: bool


class SeenJobs:
    """The jobs seen last, in a table whose whole memory is there from the beginning.

    A job has one of the rows of its bucket, which its key tells; there the longest unused row is given to the next.
    """

    def __init__(self) -> None:
        self._key = array("Q", bytes(8 * MAX_SEEN))
        self._seq = array("Q", bytes(8 * MAX_SEEN))
        self._since = array("d", bytes(8 * MAX_SEEN))
        self._used = array("Q", bytes(8 * MAX_SEEN))
        self._mark = bytearray(MAX_SEEN)
        self._last = self._uses = 0

    def __len__(self) -> int:
        return sum(used > 0 for used in self._used)

    def arrived(self, digest: bytes, now: float) -> Sight:
        """Give what is known of a job that arrives; ``handed`` says whether it is back from a hand-over."""
        key = int.from_bytes(digest)
        row = self._row(key)
        if row is None or now - self._since[row] >= SEEN_FOR:
            self._last += 1
            sight = Sight(key, self._last, now, handed=False)
            self._keep(sight, _NEW)
            return sight
        if self._mark[row] == _OUT:
            self._mark[row], self._since[row] = _HANDED, now
        return Sight(key, self._seq[row], self._since[row], self._mark[row] == _HANDED)

    def handed(self, sight: Sight) -> None:
        """Note that it is handed over now."""
        self._keep(sight, _OUT)

    def not_taken(self, sight: Sight) -> None:
        """Note that the broker did not take the hand-over."""
        if (row := self._row(sight.key)) is not None:
            self._mark[row] = _HANDED

    def is_out(self, sight: Sight) -> bool:
        """Say whether a job that was handed over is not back yet."""
        row = self._row(sight.key)
        return row is None or self._mark[row] == _OUT

    def _row(self, key: int) -> int | None:
        bucket = key % _BUCKETS * _ROWS
        try:
            return self._key.index(key, bucket, bucket + _ROWS)
        except ValueError:
            return None

    def _keep(self, sight: Sight, mark: int) -> None:
        row = self._row(sight.key)
        if row is None:
            bucket = sight.key % _BUCKETS * _ROWS
            row = self._used.index(min(self._used[bucket : bucket + _ROWS]), bucket)
        self._uses += 1
        self._key[row], self._used[row] = sight.key, self._uses
        self._seq[row], self._since[row], self._mark[row] = sight.seq, sight.since, mark


class Pace:
    """The pause between two of a user's jobs while some of them come back."""

    __slots__ = ("_accepted_at", "_interval", "next_at", "out")

    def __init__(self) -> None:
        self._interval = 0.0
        self._accepted_at = 0.0
        self.next_at = 0.0
        self.out: list[tuple[float, Sight]] = []
        """Confirmed hand-overs that are neither back nor accepted yet, oldest first."""

    def reset(self, initial: float, now: float) -> None:
        """Begin with the shortest pause, and with nothing out."""
        self._interval, self._accepted_at, self.next_at = initial, now, now
        self.out.clear()

    def confirmed(self, sight: Sight, now: float) -> None:
        """Watch a hand-over that is out."""
        if len(self.out) < MAX_OUT:
            self.out.append((now, sight))

    def came_back(self, sight: Sight, limits: "Limits", now: float) -> None:
        """Note a return: it makes the pause grow unless something was accepted lately."""
        self.accepted(limits, now)
        self.out = [entry for entry in self.out if entry[1].key != sight.key]
        if now - self._accepted_at >= GROWS_AFTER:
            self._interval = min(self._interval * GROWTH, limits.longest)
        self.next_at = max(self.next_at, now + self._pause(limits))

    def released(self, limits: "Limits", now: float) -> None:
        """Note that one was handed over: the next waits for its turn."""
        self.next_at = now + self._pause(limits)

    def accepted(self, limits: "Limits", now: float) -> bool:
        """Say whether one has been out long enough; that makes the pause short again."""
        due = 0
        while due < len(self.out) and self.out[due][0] + ACCEPTED_AFTER <= now:
            due += 1
        if not due:
            return False
        self._accepted_at = self.out[due - 1][0] + ACCEPTED_AFTER
        self._interval = limits.initial
        del self.out[:due]
        return True

    def _pause(self, limits: "Limits") -> float:
        return self._interval * (1 + JITTER * (2 * limits.random() - 1))


class Limits:
    """The pauses that are configured, in seconds; ``random`` gives numbers from 0 to 1 for the jitter."""

    __slots__ = ("initial", "longest", "random")

    def __init__(self, initial: float, longest: float, random: Callable[[], float]) -> None:
        self.initial = initial
        self.longest = longest
        self.random = random


class Budget:
    """At most so many returned jobs a second, of all users together."""

    BURST: Final = 0.05
    """Seconds whose share may be used at once."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._free_at = 0.0

    def take(self, now: float) -> bool:
        """Use one if there is one."""
        if now < self.next_at:
            return False
        self._free_at = max(self._free_at, now - self.BURST) + 1 / self._per_second
        return True

    @property
    def next_at(self) -> float:
        """When there is one."""
        return self._free_at


_ROWS: Final = 16
_BUCKETS: Final = MAX_SEEN // _ROWS
_NEW: Final = 0
_OUT: Final = 1
"""Handed over, and not back."""
_HANDED: Final = 2
"""Handed over before, and here again."""
