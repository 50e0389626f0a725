"""Whose executor the helper is asked for next.

Users whom the helper has started before go first, so a flood of names that nobody has delays none of them. Of the
others the newest and the oldest take turns: a new user is near the head however many wait, and who waits longest gets
there, too. One turn in four of these is for users who are asked for again, because the name was unknown or the last
request hung; one is for those for whom the helper had no room when it was their turn. While users who were started
before wait, one turn in eight is the others', so everybody's turn comes. If nobody else waits, unknown names are asked
for at most ``REPEATS_PER_SECOND`` times a second: what the helper allows is there for whoever comes next. Time is an
argument.
"""

from collections import deque
from contextlib import suppress
from enum import IntEnum, auto
from math import inf
from typing import Final

from broker_listener.pacing import Budget
from broker_listener.request_window import RequestWindow
from broker_listener.user import User

MAX_FRESH: Final = 64
"""As many frames as the gate's queues take (DESIGN: RCVHWM = SNDHWM)."""
MAX_ASKED: Final = 500
"""If they hang: far more than executors fit on a host, and half of what the client waits for."""
MAX_NEW: Final = 80
"""Of these, for users who are new: fewer than the helper's ``max_executors``, by default 100."""
MAX_ASKED_AGAIN: Final = 32
"""Of these, for users whose last request hung: each may be a worker of the helper that waits for a dead directory."""
OTHERS_EVERY: Final = 8
REPEATS_PER_SECOND: Final = 12.5
"""A quarter of the helper's ``starts_per_second``, by default 50."""


class Lane(IntEnum):
    """Where a user waits."""

    KNOWN = auto()
    """The helper has started the user before."""
    TURNED_BACK = auto()
    """It was the user's turn, and the helper had no room."""
    NEW = auto()
    KNOWN_HUNG = auto()
    """Started before; the last request took all of its time."""
    UNKNOWN = auto()
    """The name was unknown when it was asked for."""
    HUNG = auto()


_HUNG: Final = (Lane.KNOWN_HUNG, Lane.HUNG)
_AGAIN: Final[tuple[Lane, ...]] = (Lane.KNOWN_HUNG, Lane.UNKNOWN, Lane.HUNG)
_TURNS: Final[tuple[tuple[Lane, ...], ...]] = (
    (Lane.NEW, Lane.TURNED_BACK),
    (Lane.TURNED_BACK, Lane.NEW),
    (Lane.NEW, Lane.TURNED_BACK),
    (*_AGAIN, Lane.NEW, Lane.TURNED_BACK),
)
"""Who has the turn, by preference."""


class AskQueue:
    """Users who wait to be asked for, and those who are; a user is in it once at most."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, deque[User]] = {lane: deque() for lane in Lane}
        self._asked: dict[User, Lane] = {}
        self._hung = self._turn = self._known_in_a_row = self._again = 0
        self._oldest_next = {Lane.NEW: True, Lane.TURNED_BACK: True}
        self._repeats = Budget(REPEATS_PER_SECOND)
        self._all = RequestWindow(MAX_FRESH, MAX_ASKED)
        self._others = RequestWindow(MAX_FRESH, MAX_NEW)

    def __len__(self) -> int:
        """Return how many wait to be asked for."""
        return sum(map(len, self._lanes.values()))

    def join(self, user: User, *, known: bool) -> None:
        """Wait to be asked for; ``known``: the helper has started the user before."""
        self._lanes[_lane_of(user, known=known)].append(user)

    def leave(self, user: User) -> bool:
        """Have an unknown user wait no longer; return False if the user is asked for already, or was not waiting."""
        for lane in _AGAIN:
            with suppress(ValueError):
                self._lanes[lane].remove(user)
                return True
        return False

    def take(self, now: float) -> User | None:
        """Return the next who is to be asked for now."""
        if not self._all.has_room(now) or (lane := self._next(now)) is None:
            return None
        user = self._pop(lane, now)
        self._asked[user] = lane
        self._hung += lane in _HUNG
        self._all.sent(now)
        if lane is Lane.KNOWN:
            self._known_in_a_row += 1
        else:
            self._known_in_a_row = 0
            self._turn += 1
            self._others.sent(now)
            if len(self) == len(self._lanes[Lane.KNOWN]):
                self._others.nobody_waits()
        return user

    def answered(self, user: User, no_room_for: float, now: float) -> bool:
        """Handle an answer; return True if look-ups of new users are under way, which may be why there was no room.

        ``no_room_for``: seconds for which the helper has no room for anybody, 0 if it said no such thing.
        """
        if (lane := self._asked.pop(user, None)) is None:
            return False
        self._hung -= lane in _HUNG
        self._all.answered()
        if lane is Lane.KNOWN:
            if no_room_for:
                self._others.close(no_room_for, now)
        elif no_room_for:
            self._others.refused(no_room_for, now)
        else:
            self._others.answered()
        return self._others.under_way > 0

    def executor_ended(self) -> None:
        """Handle that there is a place again."""
        self._others.open()

    def next_at(self) -> float:
        """Return the time from which ``take`` returns one, math.inf if nothing waits on the clock."""
        waiting = [lane for lane in Lane if self._lanes[lane]]
        at = min(map(self._lane_at, waiting), default=inf)
        return max(at, self._all.next_at())

    def _lane_at(self, lane: Lane) -> float:
        """Return from when the head of the lane may be asked for if nobody is in the other lanes."""
        if lane is Lane.KNOWN:
            return -inf
        if lane in _HUNG and self._hung >= MAX_ASKED_AGAIN:
            return inf
        return max(self._others.next_at(), self._repeats.next_at if lane is Lane.UNKNOWN else -inf)

    def _next(self, now: float) -> Lane | None:
        other = self._next_other(now) if self._others.has_room(now) else None
        if self._lanes[Lane.KNOWN] and (other is None or self._known_in_a_row < OTHERS_EVERY - 1):
            return Lane.KNOWN
        return other

    def _next_other(self, now: float) -> Lane | None:
        new = bool(self._lanes[Lane.NEW] or self._lanes[Lane.TURNED_BACK])
        preferred = _TURNS[self._turn % len(_TURNS)] if new else _AGAIN
        if preferred[0] is _AGAIN[0]:
            turn = self._again % len(_AGAIN)
            preferred = (*_AGAIN[turn:], *_AGAIN[:turn], *preferred[len(_AGAIN) :])
        return next((lane for lane in preferred if self._may(lane, now, alone=not new)), None)

    def _may(self, lane: Lane, now: float, *, alone: bool) -> bool:
        if not self._lanes[lane] or (lane in _HUNG and self._hung >= MAX_ASKED_AGAIN):
            return False
        return lane is not Lane.UNKNOWN or not alone or now >= self._repeats.next_at

    def _pop(self, lane: Lane, now: float) -> User:
        line = self._lanes[lane]
        if lane in _AGAIN:
            self._again = _AGAIN.index(lane) + 1
        if lane is Lane.UNKNOWN:
            self._repeats.take(now)
        if lane not in self._oldest_next:
            return line.popleft()
        self._oldest_next[lane] = not self._oldest_next[lane]
        return line.pop() if self._oldest_next[lane] else line.popleft()


def _lane_of(user: User, *, known: bool) -> Lane:
    if user.hung:
        return Lane.KNOWN_HUNG if known else Lane.HUNG
    if user.unknown_since != inf:
        return Lane.UNKNOWN
    if known:
        return Lane.KNOWN
    return Lane.TURNED_BACK if user.turned_back else Lane.NEW
