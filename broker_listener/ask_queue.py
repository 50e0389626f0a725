"""Whose executor the helper is asked for next: in the order in which they came, behind them those who hung last time.

A request that has no answer after ``FRESH_FOR`` hangs on something, a directory most likely, and no longer counts among
those few that are sent at a time: who hangs delays others by that much and no more, until ``MAX_ASKED`` hang. Time is
an argument.
"""

from collections import deque
from math import inf
from typing import Final

from broker_listener.user import User

MAX_FRESH: Final = 64
"""As many frames as the gate's queues take (DESIGN: RCVHWM = SNDHWM)."""
FRESH_FOR: Final = 0.05
"""Seconds; in a queue of the gate a frame is for less than one of them."""
MAX_ASKED: Final = 500
"""In all: far more than executors fit on a host, and half of what the client waits for."""
MAX_ASKED_AGAIN: Final = 32
"""Of these, for users whose last request hung: each may be a worker of the helper that waits for a dead directory."""


class AskQueue:
    """Users who wait to be asked for, and those who are; a user is in it once at most."""

    def __init__(self) -> None:
        self._waiting: deque[User] = deque()
        self._waiting_again: deque[User] = deque()
        self._fresh: dict[User, float] = {}
        self._asked = self._asked_again = 0

    def __len__(self) -> int:
        """Give how many wait to be asked for."""
        return len(self._waiting) + len(self._waiting_again)

    def join(self, user: User) -> None:
        """Wait to be asked for."""
        user.asking_again = user.hung
        (self._waiting_again if user.hung else self._waiting).append(user)

    def answered(self, user: User) -> None:
        """Take that the user's request has an answer."""
        self._asked -= 1
        self._asked_again -= user.asking_again
        self._fresh.pop(user, None)

    def take(self, now: float) -> User | None:
        """Give the next who is to be asked for now."""
        while self._fresh and self._oldest() + FRESH_FOR <= now:
            del self._fresh[next(iter(self._fresh))]
        if len(self._fresh) >= MAX_FRESH or self._asked >= MAX_ASKED or (user := self._next()) is None:
            return None
        self._asked += 1
        self._asked_again += user.asking_again
        self._fresh[user] = now
        return user

    def next_at(self) -> float:
        """Give the time from which ``take`` gives one, infinite where that is no matter of time."""
        somebody = self._waiting or (self._waiting_again and self._asked_again < MAX_ASKED_AGAIN)
        wait = somebody and len(self._fresh) >= MAX_FRESH and self._asked < MAX_ASKED
        return self._oldest() + FRESH_FOR if wait else inf

    def _oldest(self) -> float:
        return next(iter(self._fresh.values()))

    def _next(self) -> User | None:
        if self._waiting:
            return self._waiting.popleft()
        if self._waiting_again and self._asked_again < MAX_ASKED_AGAIN:
            return self._waiting_again.popleft()
        return None
