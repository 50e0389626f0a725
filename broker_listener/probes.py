"""Who may be started while the host can start nobody: one user a second, so that its recovery is seen at once.

Those who have not failed yet come first: a user who has may have a fault of the user's own, and the first success
ends the host's. A probe whose answer says nothing of the host gives its turn back, and after two of those a user whose
start has failed is tried, whom the helper knows at least: names that nobody has cannot hide that the host is well.
Sans-I/O; time is an argument.
"""

from collections.abc import Iterator
from math import inf
from typing import Final

from broker_listener.host_fault import HostFaults
from broker_listener.transitions import State
from broker_listener.user import User

PAUSE: Final = 1.0
PAUSE_OF_SEVERAL: Final = 5.0
"""Seconds where other hosts may start the user: there a probe that fails costs its user time."""
MAX_BARREN: Final = 2
"""Probes of new users in a row that say nothing of the host."""


class Probes:
    """The two lines of those who wait for their turn; a user is in one of them at most.

    With ``others`` nobody waits in line here: who has no turn is for another host to start, if one has room.
    """

    def __init__(self, host: HostFaults, *, others: bool) -> None:
        self._host = host
        self._others = others
        self._pause = PAUSE_OF_SEVERAL if others else PAUSE
        self._next_at = -inf
        self._barren = 0
        self._new: dict[User, None] = {}
        self._struck: dict[User, None] = {}

    def __len__(self) -> int:
        """Return how many wait for their turn."""
        return len(self._new) + len(self._struck)

    def may_start(self, user: User, now: float) -> bool:
        """Return True if the helper may be asked for the user now; if not, the user waits in line."""
        if user.starts.probing or self._is_well(now):
            return True
        # With others there are no lines to look into: a struck user leaves each turn to new ones for as long again.
        precedence = self._pause if self._others and user.starts.strikes else 0.0
        if now >= self._next_at + precedence and not self._new and not (user.starts.strikes and self._struck):
            self._take_turn(user, now)
            return True
        if not self._others:
            (self._struck if user.starts.strikes else self._new)[user] = None
        return False

    def answered(self, now: float, *, barren: bool) -> None:
        """Handle the answer to a probe; ``barren`` if it says nothing of the host."""
        self._barren = self._barren + 1 if barren else 0
        if barren:
            self._next_at = now

    def leave(self, user: User) -> None:
        """Take the user out of the line."""
        self._new.pop(user, None)
        self._struck.pop(user, None)

    def due(self, now: float) -> list[User]:
        """Return those whose turn it is: all of them once the host is well."""
        if not len(self):
            return []
        if self._is_well(now):
            released = [*self._new, *self._struck]
            self._new.clear()
            self._struck.clear()
            return [user for user in released if waits(user)]
        return list(self._turn(now))

    def next_at(self) -> float:
        """Return the time from which ``due`` returns somebody, inf if nobody waits."""
        return self._next_at if len(self) else inf

    def _is_well(self, now: float) -> bool:
        # The helper's pauses hold back executors that die: no reason to start fewer, but one to start them elsewhere.
        return self._host.start_fault(now) is None and not (self._others and self._host.death_fault(now))

    def _turn(self, now: float) -> Iterator[User]:
        while len(self) and now >= self._next_at:
            user = self._next()
            self.leave(user)
            if waits(user):
                if user.held or now < user.wanted_until:
                    self._take_turn(user, now)
                yield user

    def _next(self) -> User:
        """Return who is first in line: of the new ones the oldest, and the newest after a probe that was barren."""
        if self._struck and (not self._new or self._barren >= MAX_BARREN):
            self._barren = 0
            return next(iter(self._struck))
        return next(reversed(self._new) if self._barren else iter(self._new))

    def _take_turn(self, user: User, now: float) -> None:
        user.starts.probing = True
        self._next_at = now + self._pause


def waits(user: User) -> bool:
    """Return True if the user waits for a turn and for nothing else."""
    return user.state is State.BACKING_OFF and user.until == inf
