"""How often, how many, how long: rates, back-off after quick deaths, idleness, a bound on what is logged.

Pure: times are monotonic seconds and are passed in. Every table is bounded, by what the rates themselves let in within
their window or by the executors that run.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

QUICK_DEATH: Final = 10.0
"""An executor that lives shorter than this, in seconds, makes its user wait."""
_FIRST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 60.0
_MINUTE: Final = 60.0
_MOST_WAITS: Final = 10_000


@dataclass(slots=True)
class Rates:
    """Starts a minute for each key, and starts a second in all."""

    per_minute: int
    per_second: int
    _by_key: dict[str, deque[float]] = field(default_factory=dict)
    _all: deque[float] = field(default_factory=deque)

    def wait(self, key: str, now: float, *, in_all: bool = True) -> float:
        """Count a start and give 0, or give the seconds until one is allowed; that one is not counted.

        With ``in_all`` false it counts for its key only: the same start was counted under another key before.
        """
        _forget(self._all, now, 1.0)
        recent = self._by_key.get(key, deque())
        _forget(recent, now, _MINUTE)
        if len(recent) >= self.per_minute:
            return recent[0] + _MINUTE - now
        if in_all and len(self._all) >= self.per_second:
            return self._all[0] + 1.0 - now
        recent.append(now)
        self._all.extend([now] * in_all)
        self._by_key[key] = recent
        self._sweep(now)
        return 0.0

    def _sweep(self, now: float) -> None:
        if len(self._by_key) > 2 * self.per_second * _MINUTE:
            self._by_key = {key: times for key, times in self._by_key.items() if times and times[-1] > now - _MINUTE}


@dataclass(slots=True)
class BackOff:
    """The pause of a user whose executors die young: 1 s, doubled each time, 60 s at most."""

    _waits: dict[str, tuple[float, float]] = field(default_factory=dict)

    def ended(self, user: str, lived: float, now: float) -> None:
        """Note that an executor ended that had lived so many seconds."""
        if lived >= QUICK_DEATH:
            self._waits.pop(user, None)
            return
        last, _ = self._waits.get(user, (0.0, 0.0))
        pause = min(max(_FIRST_WAIT, last * 2), _LONGEST_WAIT)
        self._waits[user] = (pause, now + pause)
        if len(self._waits) > _MOST_WAITS:
            self._waits = {name: wait for name, wait in self._waits.items() if wait[1] > now}

    def wait(self, user: str, now: float) -> float:
        """Give the seconds that the user still has to wait."""
        _, until = self._waits.get(user, (0.0, now))
        return max(0.0, until - now)


@dataclass(slots=True)
class Idleness:
    """Who has an executor for nothing: ``after`` seconds without a request and with less than ``share`` of a core."""

    after: float
    share: float
    _windows: dict[str, tuple[float, float]] = field(default_factory=dict)

    def forget(self, user: str) -> None:
        """Begin anew: there was a request for this user's executor, or its end."""
        self._windows.pop(user, None)

    def is_idle(self, user: str, now: float, used: float) -> bool:
        """Tell whether the executor was idle for all of the time; ``used``: CPU seconds so far.

        The first look begins the time; one that finds the executor at work begins it anew.
        """
        since, before = self._windows.setdefault(user, (now, used))
        if now - since < self.after:
            return False
        del self._windows[user]
        return used - before < self.share * (now - since)


@dataclass(slots=True)
class Bound:
    """A burst, then one a second; what is over it is counted by its reason."""

    burst: int = 200
    suppressed: dict[str, int] = field(default_factory=dict)
    _tokens: float = 200.0
    _at: float = 0.0

    def allows(self, reason: str, now: float) -> bool:
        """Tell whether one more may be written; else count it under ``reason``, one of the vocabulary."""
        self._tokens = min(float(self.burst), self._tokens + now - self._at)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return True
        self.suppressed[reason] = self.suppressed.get(reason, 0) + 1
        return False

    def take(self) -> dict[str, int]:
        """Give the counts of what was left out, and begin anew."""
        taken, self.suppressed = self.suppressed, {}
        return taken


def _forget(times: deque[float], now: float, after: float) -> None:
    while times and times[0] + after <= now:  # as the wait is counted: rounding must not make it 0
        times.popleft()
