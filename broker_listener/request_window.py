"""How many requests to the helper may be under way at a time, and from when on.

A request that hangs keeps its place, but each ``TRICKLE`` seconds one more is sent nevertheless, up to ``most``: what
hangs delays others by that much and no more. The gate in front of the helper drops what its queues do not take, so
requests are never sent in a burst larger than ``size``.

Each look-up takes one of the helper's places and rates for as long as it lasts, whether or not anybody has the name. A
flood of names would use up what a new user needs, so the window halves when the helper refuses for want of room, grows
as requests are answered (additive increase, multiplicative decrease: RFC 5681), and is as it was when nobody waits.
Time is an argument.
"""

from math import inf
from typing import Final

SMALLEST: Final = 2
TRICKLE: Final = 0.05
SECOND: Final = 1.0
"""The helper counts starts by the second: who is told to come back later than this has used up a limit of its own."""
NO_ROOM_PAUSE: Final = 0.1
"""Seconds without a request after the helper had no place left; look-ups of ours that take one end soon."""


class RequestWindow:
    """The requests under way; ``size`` of them at first, ``most`` if they hang."""

    def __init__(self, size: int, most: int) -> None:
        self._largest = float(size)
        self._size = self._largest
        self._most = most
        self._opens_at = self._sent_at = -inf
        self.under_way = 0

    def has_room(self, now: float) -> bool:
        """Return True if one more request may be sent."""
        return now >= self.next_at()

    def next_at(self) -> float:
        """Return the time from which there is room, math.inf if only an answer makes room."""
        if self.under_way < int(self._size):
            return self._opens_at
        return max(self._opens_at, self._sent_at + TRICKLE) if self.under_way < self._most else inf

    def sent(self, now: float) -> None:
        """Count a request."""
        self.under_way += 1
        self._sent_at = now

    def answered(self) -> None:
        """Count an answer that was no refusal for want of room."""
        self.under_way -= 1
        self._size = min(self._size + 1 / self._size, self._largest)

    def refused(self, pause: float, now: float) -> None:
        """Count a refusal for want of room: nothing more is sent for ``pause`` seconds, and fewer at a time then."""
        self._size = max(float(SMALLEST), min(self._size, self.under_way) / 2)
        self.under_way -= 1
        self.close(pause, now)

    def close(self, pause: float, now: float) -> None:
        """Send nothing for ``pause`` seconds: the helper had no room for somebody else."""
        self._opens_at = max(self._opens_at, now + pause)

    def open(self) -> None:
        """Send again: the helper has room now."""
        self._opens_at = -inf

    def nobody_waits(self) -> None:
        """Forget what was learned: there is no flood."""
        self._size = self._largest
