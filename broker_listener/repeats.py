"""When something that all hosts hear may be said again: one answer serves all, and a storm of them serves nobody.

Sans-I/O; time is an argument.
"""

from math import inf
from typing import Final

REPEAT_PAUSE: Final = 0.5
"""Seconds between two times at first."""
SOON_REPEATS: Final = 4
"""So often it is repeated before the pauses grow: so many hosts may join within a moment."""


class Repeats:
    """When something that all hear may be said again: at pauses that grow up to ``limit`` seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.begin()

    def begin(self) -> None:
        """Let it be said at once."""
        self._said_at, self._pause, self._times = -inf, 0.0, 0

    def due(self, now: float) -> bool:
        """Tell whether it may be said now; who is told so says it."""
        since = now - self._said_at
        if since < self._pause:
            return False
        self._times = self._times + 1 if since < 4 * self._pause else 0
        self._said_at = now
        self._pause = min(REPEAT_PAUSE * 2.0 ** min(max(self._times - SOON_REPEATS, 0), 20), self._limit)
        return True
