"""How much of what all share one user may hold: a quarter of ``max_held_bytes`` once more than half of it is held.

The newest jobs beyond it give up their bodies at once, so the broker's deliveries go on and a new user's first job
arrives; they stay unsettled, since a job that goes back is delivered again at once. So they go back slowly, at most
``RETURNS_PER_SECOND`` a second of all users together; of a user whose executor takes jobs, one after the other as soon
as there is room. What a quorum queue has redelivered often is not among them: giving it back could lose it. Time is an
argument.
"""

from collections import deque
from collections.abc import Iterable
from math import inf
from typing import Final, NamedTuple

from broker_listener.actions import Action, Fault, Report
from broker_listener.config import BrokerConfig
from broker_listener.consuming import Delivery
from broker_listener.grace import Grace
from broker_listener.pacing import Budget
from broker_listener.requeue import redelivered_too_often
from broker_listener.settlement import Settlement
from broker_listener.transitions import State
from broker_listener.user import Held, User

RETURNS_PER_SECOND: Final = 20.0
KEPT: Final = 7 / 8
"""Of a share, after the newest were taken: so a share that is full is not sorted for each job that arrives."""


class Surplus(NamedTuple):
    """A job without its body, of this size, held since then."""

    delivery: Delivery
    size: int
    since: float


class Shares:
    """Takes from users what is beyond their share, and has it go back."""

    def __init__(self, config: BrokerConfig, actions: list[Action], grace: Grace, settlement: Settlement) -> None:
        self._actions = actions
        self._grace = grace
        self._settlement = settlement
        self._half = config.max_held_bytes / 2
        self._share = config.max_held_bytes / 4
        self._max_hold = config.max_hold
        self._large: dict[User, None] = {}
        """Who holds more than a share, perhaps; four at most do while all is held."""
        self._surplus: dict[User, deque[Surplus]] = {}
        self._coming: set[User] = set()
        """Of whom a job was given back because there is room for it, and has not arrived yet."""
        self._surplus_from: dict[User, int] = {}
        """The place in the order of the first job that was taken."""
        self._budget = Budget(RETURNS_PER_SECOND)

    @property
    def jobs(self) -> int:
        """How many jobs wait to go back."""
        return sum(map(len, self._surplus.values()))

    def takes(self, user: User, held: Held) -> bool:
        """Return True if the job waits to go back: newer ones do so until the older ones have come."""
        if user in self._coming:
            self._coming.discard(user)
            return False
        if not user.surplus or held.seq < self._surplus_from[user] or redelivered_too_often(held.delivery):
            return False
        self._set_aside(user, [held])
        return True

    def arrived(self, user: User) -> None:
        """Handle that the user may hold one more job."""
        if user.held_bytes > self._share:
            self._large[user] = None
        if self._settlement.bytes > self._half:
            for large in list(self._large):
                if large.held_bytes > self._share:
                    self._trim(large)
                del self._large[large]

    def serve(self, now: float) -> None:
        """Give back what may go back now."""
        for user in list(self._surplus):
            line = self._surplus[user]
            while line and self._may_go(user, line[0], now):
                user.surplus -= 1
                surplus = line.popleft()
                if now >= surplus.since + self._max_hold:
                    self._settlement.held_too_long(surplus.delivery)
                else:
                    self._settlement.give_back(surplus.delivery)
            if not line:
                del self._surplus[user], self._surplus_from[user]

    def next_at(self) -> float:
        """Return the time from which ``serve`` can do something, math.inf if nothing waits on the clock."""
        if not self._surplus:
            return inf
        return min(self._budget.next_at, *(line[0].since + self._max_hold for line in self._surplus.values()))

    def clear(self) -> None:
        """Forget all of it: the channel is gone."""
        for user in self._surplus:
            user.surplus = 0
        self._surplus.clear()
        self._surplus_from.clear()
        self._large.clear()
        self._coming.clear()

    def _may_go(self, user: User, surplus: Surplus, now: float) -> bool:
        if now >= surplus.since + self._max_hold:
            return True
        served = user.state in (State.READY, State.FAILED) or user.elsewhere  # what arrives then does not stay
        if served and user not in self._coming and user.held_bytes <= self._share / 2:
            self._coming.add(user)
            return True
        if not self._budget.take(now):
            return False
        self._surplus[user] = self._surplus.pop(user)  # the next time it is another's turn first
        return True

    def _trim(self, user: User) -> None:
        """Take the newest of the user's jobs until what is left is less than a share; a single large one stays."""
        user.held.sort()
        kept, taken, left = [], deque[Held](), user.held_bytes
        for held in reversed(user.held):
            fits = left <= KEPT * self._share or held is user.held[0]
            if fits or redelivered_too_often(held.delivery):
                kept.append(held)
            else:
                left -= held.size
                taken.appendleft(held)
        user.keep(kept)
        if taken:
            self._grace.leave(user, len(taken))
            self._surplus_from[user] = min(taken[0].seq, self._surplus_from.get(user, taken[0].seq))
            self._set_aside(user, taken)
            self._actions.append(Report(Fault.OVER_SHARE, user.name, f"jobs={len(taken)}"))

    def _set_aside(self, user: User, jobs: Iterable[Held]) -> None:
        line = self._surplus.setdefault(user, deque())
        for held in jobs:
            line.append(Surplus(self._settlement.without_body(held.delivery), held.size, held.since))
            user.surplus += 1
