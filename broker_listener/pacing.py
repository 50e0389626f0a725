"""How fast a user's jobs are handed over again: which of them came back, and the pause between two.

A job that no executor takes circulates between the consumers of the queue and meets us again, so one return proves
nothing, and pauses per job would turn their order round: the pace is the user's. What is remembered of jobs is bounded
and steers the pause and the order only, never parking, dropping or a search for duplicates. Time is an argument.
"""

from collections.abc import Callable
from hashlib import blake2b
from itertools import islice
from typing import Final

ACCEPTED_AFTER: Final = 0.2
"""Seconds after which a hand-over that is not back counts as accepted (300 executors pass a job round in 60 ms)."""
GROWS_AFTER: Final = 0.3
"""Seconds without an acceptance after which returns make the pause grow."""
GROWTH: Final = 1.05
JITTER: Final = 0.25
MAX_SEEN: Final = 8192
FORGOTTEN_AT_ONCE: Final = 512
SEEN_FOR: Final = 600.0
MAX_OUT: Final = 64
"""Hand-overs of a user that are watched at a time; of a flood that is a sample, which is enough."""


def digest(body: bytes, message_id: bytes | None) -> bytes:
    """Give what a job is recognised by when it comes back."""
    whole = blake2b(body, digest_size=8)  # of 8,192 jobs two alike are one in 10^12; it steers a pause
    if message_id is not None:
        whole.update(message_id)
    return whole.digest()


class Seen:
    """A job that was seen: its place in the order, and whether a hand-over of it is out.

    ``since`` is when it was first seen or came back last; the broker's redelivery does not change it.
    """

    __slots__ = ("digest", "handed", "out", "seq", "since")

    def __init__(self, digest: bytes, seq: int, at: float) -> None:  # the function's name is the field's
        self.digest = digest
        self.seq = seq
        self.since = at
        self.handed = False
        self.out = False


class SeenJobs:
    """The jobs seen last: the longest unused are forgotten first."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, Seen] = {}  # half the memory of an OrderedDict
        self._seq = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def arrived(self, digest: bytes, now: float) -> Seen:
        """Give the job's record; ``handed`` says whether it is back from a hand-over."""
        seen = self._jobs.get(digest)
        if seen is not None and now - seen.since < SEEN_FOR:
            if seen.out:
                seen.out, seen.since = False, now
            return seen
        self._seq += 1
        seen = Seen(digest, self._seq, now)
        self._keep(seen)
        return seen

    def handed(self, seen: Seen) -> None:
        """Note that it is handed over now."""
        seen.handed = seen.out = True
        self._keep(seen)

    def _keep(self, seen: Seen) -> None:
        self._jobs.pop(seen.digest, None)
        self._jobs[seen.digest] = seen
        if len(self._jobs) > MAX_SEEN:  # several at once: a dict finds its first key slowly where many were deleted
            for oldest in list(islice(self._jobs, FORGOTTEN_AT_ONCE)):
                del self._jobs[oldest]


class Pace:
    """The pause between two of a user's jobs while some of them come back."""

    __slots__ = ("_accepted_at", "_interval", "next_at", "out")

    def __init__(self) -> None:
        self._interval = 0.0
        self._accepted_at = 0.0
        self.next_at = 0.0
        self.out: list[tuple[float, Seen]] = []
        """Confirmed hand-overs that are neither back nor accepted yet, oldest first."""

    def reset(self, initial: float, now: float) -> None:
        """Begin with the shortest pause, and with nothing out."""
        self._interval, self._accepted_at, self.next_at = initial, now, now
        self.out.clear()

    def confirmed(self, seen: Seen, now: float) -> None:
        """Watch a hand-over, unless it was back before the broker confirmed it."""
        if seen.out and len(self.out) < MAX_OUT:
            self.out.append((now, seen))

    def came_back(self, seen: Seen, limits: "Limits", now: float) -> None:
        """Note a return: it makes the pause grow unless something was accepted lately."""
        self.accepted(limits, now)
        self.out = [entry for entry in self.out if entry[1] is not seen]
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
