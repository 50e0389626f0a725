"""Whose job is handed over next: users by turns, so that a busy one delays no other's first job. Time is an argument.

A user stands in one of two lines at most: ``flowing`` where everything may go, ``paced`` where something came back,
which is bounded in all by ``returns_per_second``. Within a user the job that was seen first goes first, always.
"""

from collections import deque
from collections.abc import Callable
from math import inf

from broker_listener.consuming import Delivery
from broker_listener.pacing import Budget, Limits, SeenJobs
from broker_listener.settlement import Settlement
from broker_listener.transitions import State
from broker_listener.user import Held, User


class Turns:
    """Hands over what may go; ``may_give_back`` says of a delivery whether to give it back instead of publishing it."""

    def __init__(
        self,
        settlement: Settlement,
        seen: SeenJobs,
        limits: Limits,
        budget: Budget,
        may_give_back: Callable[[Delivery], bool] | None,
    ) -> None:
        self._settlement = settlement
        self._seen = seen
        self._limits = limits
        self._budget = budget
        self._may_give_back = may_give_back
        self._flowing: deque[User] = deque()
        self._paced: deque[User] = deque()

    def join(self, user: User, now: float) -> None:
        """Stand in line, if a job of the user may go now."""
        if not user.queued and self._may_go(user, now):
            user.queued = True
            (self._paced if user.held[0].returned else self._flowing).append(user)

    def goes_at_once(self, user: User, *, returned: bool) -> bool:
        """Return True if a job of the user that arrives now is handed over at once: nothing of the user waits."""
        served = user.state is State.READY or user.elsewhere
        return served and not (returned or user.held or user.failures) and self._settlement.has_room

    def serve(self, now: float) -> list[User]:
        """Hand over as much as may go; give the users whose next job has to wait for a time."""
        waiting: list[User] = []
        while self._paced and self._settlement.has_room and self._budget.take(now):
            self._turn(self._paced.popleft(), waiting, now)
        while self._flowing and self._settlement.has_room:
            self._turn(self._flowing.popleft(), waiting, now)
        return waiting

    def confirmed(self, user: User, held: Held, now: float) -> None:
        """Watch a hand-over that the broker has taken, unless it is back already."""
        if self._seen.is_out(held.sight):
            user.pace.confirmed(held.sight, now)

    def next_at(self) -> float:
        """Give the time from which the next of those in line can go, infinite where that is no matter of time."""
        return self._budget.next_at if self._paced and self._settlement.has_room else inf

    def clear(self) -> None:
        """Send everybody away."""
        for line in (self._flowing, self._paced):
            for user in line:
                user.queued = False
            line.clear()

    def _turn(self, user: User, waiting: list[User], now: float) -> None:
        user.queued = False
        if not self._may_go(user, now):
            waiting.append(user)
            return
        held = user.take_oldest()
        self._seen.handed(held.sight)
        if held.returned or user.state is State.PROBING:
            user.pace.released(self._limits, now)
        if self._may_give_back is not None and self._may_give_back(held.delivery):
            self._settlement.give_back(held.delivery)
            self._settlement.count_handed_over(user, held, now)
            self.confirmed(user, held, now)
        else:
            user.under_way += 1
            self._settlement.hand_over(user, held)
        self.join(user, now)
        if user.held and not user.queued:
            waiting.append(user)

    def _may_go(self, user: User, now: float) -> bool:
        """Say whether the user's oldest job may be handed over now."""
        if not user.held:
            return False
        if user.failures:
            served = user.elsewhere or user.state in (State.READY, State.PROBING)
            return served and not user.under_way and now >= user.pace.next_at
        if user.state is State.READY or user.elsewhere:
            # At the bound what is held hides others' first jobs: then ``returns_per_second`` alone holds it back.
            return not user.returned or now >= user.pace.next_at or not self._settlement.consuming
        if user.state is State.PROBING:
            return not user.under_way and not user.pace.out and now >= user.pace.next_at
        return False
