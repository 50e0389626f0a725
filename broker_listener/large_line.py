"""Messages that are larger than any job, in our hands until they are parked: the body of one of them is kept at a time.

The others' bodies are thrown away as they arrive. While their delivery is unsettled, nothing is lost: once the kept one
has left, the next is given back to the queue and arrives again, now to be kept. What is over ``max_parkable``, or was
not taken by the broker, waits without its body and goes back after ``max_hold``. Time is an argument.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Final

from broker_listener.aside import MAX_PAUSE, PAUSE, Leaving
from broker_listener.config import BrokerConfig

AWAITED_FOR: Final = 10.0
"""Seconds that what was given back has the place, after the last large body that began to arrive: so that a flood
lets none go round for ever. Another consumer may have it: then the next one's turn comes later, and nothing else."""


@dataclass(slots=True)
class _Awaited:
    """The size of what was given back so that it arrives again, and until when nothing else is kept."""

    size: int
    until: float


class LargeLine:
    """The line."""

    def __init__(self, config: BrokerConfig) -> None:
        self._max_parkable = config.max_parkable
        self._max_hold = config.max_hold
        self._arriving = False
        self._kept: Leaving | None = None
        self._skipped: deque[Leaving] = deque()
        self._stuck: list[tuple[float, int, Leaving]] = []
        self._count = 0
        self._awaited: _Awaited | None = None
        self._failures = 0
        self._next_at = 0.0
        self.under_way = 0

    def __len__(self) -> int:
        """Return how many wait, those without their body among them."""
        waits = self._kept is not None and not self.under_way
        return waits + len(self._skipped) + len(self._stuck)

    @property
    def stuck(self) -> int:
        """How many go back after ``max_hold`` since they cannot be parked."""
        return len(self._stuck)

    def keeps(self, size: int, now: float) -> bool:
        """Return whether the body that begins to arrive is kept; bodies arrive one after the other."""
        self._arriving = False  # one that began before and did not join is none of ours
        awaited = self._awaited
        if awaited is not None and awaited.size != size and now < awaited.until:
            awaited.until = now + AWAITED_FOR
            return False
        if size > self._max_parkable or self._kept is not None or self.under_way:
            return False
        if awaited is not None and awaited.size == size:
            self._awaited = None
        self._arriving = True
        return True

    def join(self, leaving: Leaving) -> None:
        """Wait in line, with the body if it was kept."""
        large = leaving.delivery.large
        if large is None or large.size > self._max_parkable:
            self.get_stuck(leaving)
        elif self._arriving and large.kept:
            self._arriving, self._kept = False, leaving
        else:
            self._skipped.append(leaving)

    def take(self, now: float) -> Leaving | None:
        """Return the one whose body is to be published now, if any; ``ended`` is called for it."""
        if self._kept is None or self.under_way or now < self._next_at:
            return None
        self.under_way = 1
        return self._kept

    def ended(self, *, taken: bool, now: float) -> None:
        """Take the broker's answer: who did not have it taken lets it ``get_stuck``, unless it was lost meanwhile."""
        self.under_way, self._kept = 0, None
        if taken:
            self._failures, self._next_at = 0, 0.0
            return
        self._next_at = now + min(PAUSE * 2**self._failures, MAX_PAUSE)
        self._failures = min(self._failures + 1, 10)

    def get_stuck(self, leaving: Leaving) -> None:
        """Wait without a body until ``max_hold`` is over."""
        self._count += 1
        heappush(self._stuck, (leaving.since, self._count, leaving))

    def next_again(self, now: float) -> Leaving | None:
        """Return the one that is to be given back now so that it arrives again and is kept, if any."""
        if now < self._again_at():
            return None
        leaving = self._skipped.popleft()
        size = leaving.delivery.large.size if leaving.delivery.large is not None else 0
        self._awaited = _Awaited(size, now + AWAITED_FOR)
        return leaving

    def expired(self, now: float) -> Iterator[Leaving]:
        """Return those that were held for ``max_hold``, for good."""
        while self._stuck and self._stuck[0][0] + self._max_hold <= now:
            yield heappop(self._stuck)[2]
        while self._skipped and self._skipped[0].since + self._max_hold <= now:
            yield self._skipped.popleft()
        if self._kept is not None and not self.under_way and self._kept.since + self._max_hold <= now:
            leaving, self._kept = self._kept, None
            if leaving.delivery.large is not None:
                leaving.delivery.large.drop()
            yield leaving

    def next_at(self, *, can_publish: bool) -> float:
        """Return when one of the above has something to do, math.inf if nothing waits on the clock."""
        oldest = [entry[0] for entry in self._stuck[:1]] + [entry.since for entry in [*self._skipped][:1]]
        at = self._next_at if self._kept is not None else self._again_at()
        if self._kept is not None and not self.under_way:
            oldest.append(self._kept.since)
        return min(at if can_publish and not self.under_way else inf, min(oldest, default=inf) + self._max_hold)

    def lost(self) -> None:
        """Forget all of them, the broker delivers them again; a body that is under way goes on to be published."""
        if self._kept is not None and not self.under_way and self._kept.delivery.large is not None:
            self._kept.delivery.large.drop()
        self._kept, self._arriving, self._awaited = None, False, None
        self._skipped.clear()
        self._stuck.clear()

    def _again_at(self) -> float:
        if not self._skipped or self._kept is not None or self._arriving or self.under_way:
            return inf
        return max(self._next_at, self._awaited.until if self._awaited is not None else 0.0)
