"""The poll loop: descriptors, timers, long work in small steps; one thread, nothing that waits for anything else."""

import heapq
import itertools
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

Callback = Callable[[], object]
Steps = Iterator[float]
"""Work that takes long, cut into steps of well under a millisecond; each gives the seconds until the next one."""
_A_ROUND: Final = 0.01
"""Seconds of a round that all such work together may take."""


class Loop:
    """Calls back when a descriptor is readable or a time has come; times in monotonic seconds."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = itertools.count()
        self._work: deque[Steps] = deque()

    def watch(self, descriptor: int, callback: Callback) -> None:
        """Call back whenever the descriptor is readable; a callback that was there is replaced."""
        self.forget(descriptor)
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def forget(self, descriptor: int) -> None:
        """Watch the descriptor no more, if it is watched; before it is closed."""
        if descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)

    def after(self, seconds: float, callback: Callback) -> None:
        """Call back once; there is no way to take it back, so a callback looks whether it still matters."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), callback))

    def work(self, steps: Steps) -> None:
        """Do the steps, a few in each round, between whatever else there is to do."""
        self._work.append(steps)

    def round(self) -> None:
        """Wait for the next things to do, and do them."""
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        timeout = 0.0 if self._work else timeout
        for key, _ in self._selector.select(timeout):
            current = self._selector.get_map().get(key.fd)
            if current is not None and current.data == key.data:  # not forgotten or replaced in this very round
                key.data()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        self._work_until(now + _A_ROUND)

    def _work_until(self, end: float) -> None:
        """Do a step of each in turn."""
        while self._work and time.monotonic() < end:
            steps = self._work.popleft()
            pause = next(steps, None)
            if pause:
                self.after(pause, partial(self.work, steps))
            elif pause is not None:
                self._work.append(steps)
