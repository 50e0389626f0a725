"""Messages that are published to be rid of them: a line to the parked queue, and one back into the jobs queue.

Who has been held longest goes first. Where the broker does not take one, a single one is tried again after a growing
pause, until one is taken. Where the broker refuses one, the queue is full: until it has taken one again the others wait
without their bodies, and arrive again then. Time is an argument.
"""

from heapq import heappop, heappush
from math import inf
from typing import Final, NamedTuple

from broker_listener.consuming import Delivery
from broker_listener.user import User

MAX_UNDER_WAY: Final = 100
"""Of a line; beside ``max_unconfirmed``, so that a flood of them delays no hand-over."""
PAUSE: Final = 0.5
MAX_PAUSE: Final = 30.0


class Leaving(NamedTuple):
    """A message that stands in a line; ``reason`` is why it is parked, empty where it goes back."""

    delivery: Delivery
    reason: str
    detail: str
    since: float
    user: User | None = None


class Line:
    """One line."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Leaving]] = []
        self._bare: list[tuple[float, int, Leaving]] = []
        self._count = 0
        self._failures = 0
        self._next_at = 0.0
        self._refused = False
        self.under_way = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._bare)

    @property
    def bare(self) -> int:
        """How many wait without their body."""
        return len(self._bare)

    @property
    def keeps(self) -> bool:
        """Whether one that joins is published in its turn: while the queue is full, only if none waits with a body."""
        return not (self._refused and (self._waiting or self.under_way))

    def join(self, leaving: Leaving) -> None:
        """Wait in line."""
        self._count += 1
        heappush(self._waiting, (leaving.since, self._count, leaving))

    def join_bare(self, leaving: Leaving) -> None:
        """Wait without a body until there is room again."""
        self._count += 1
        heappush(self._bare, (leaving.since, self._count, leaving))

    def refused(self) -> list[Leaving]:
        """Note that the queue is full; return those that have a body to lose, for good: all but the oldest."""
        self._refused = True
        rest = [entry[2] for entry in self._waiting[1:]]
        del self._waiting[1:]
        return rest

    def next_again(self) -> Leaving | None:
        """Return one without a body that may arrive again, for good, if any: there is room for it."""
        if self._refused or not self._bare or len(self._waiting) + self.under_way >= MAX_UNDER_WAY:
            return None
        return heappop(self._bare)[2]

    def take(self, now: float) -> Leaving | None:
        """Give the next that may be published now; ``ended`` is called for each."""
        most = 1 if self._failures else MAX_UNDER_WAY
        if not self._waiting or now < self._next_at or self.under_way >= most:
            return None
        self.under_way += 1
        return heappop(self._waiting)[2]

    def take_oldest(self) -> Leaving:
        """Give the one that is held longest, for good."""
        return heappop(min((line for line in (self._waiting, self._bare) if line), key=lambda line: line[0]))[2]

    def ended(self, leaving: Leaving, *, taken: bool, now: float) -> None:
        """Note the broker's answer; what it did not take waits again."""
        self.under_way -= 1
        if taken:
            self._failures, self._next_at, self._refused = 0, 0.0, False
            return
        self._next_at = now + min(PAUSE * 2**self._failures, MAX_PAUSE)
        self._failures = min(self._failures + 1, 10)
        self.join(leaving)

    def next_at(self, *, can_publish: bool) -> float:
        """Give the time from which ``take`` gives one, infinite where that is no matter of time."""
        return self._next_at if self._waiting and can_publish and not self.under_way else inf

    def oldest(self) -> float:
        """Give since when the one that is held longest is held, infinite where there is none."""
        return min((line[0][0] for line in (self._waiting, self._bare) if line), default=inf)

    def clear(self) -> None:
        """Forget all of them, those under way, too."""
        self._waiting.clear()
        self._bare.clear()
        self.under_way = 0
