"""Waiting for processes to end, without asking anybody: a pidfd becomes readable when its process ends.

It may be told a process's number only, so one that ends before it is looked at, and whose number is given to another
process at once, would be waited for in vain; the caller has a deadline.
"""

import os
import select
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self


class Ends:
    """The processes that are still there; close it, or use it with ``with``."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._poll = select.poll()
        self._pidfds: dict[int, int] = {}
        for pid in pids:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            self._pidfds[pidfd] = pid
            self._poll.register(pidfd, select.POLLIN)

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        for pidfd in self._pidfds:
            os.close(pidfd)
        self._pidfds.clear()

    def left(self) -> set[int]:
        """Give the processes that have not ended."""
        return set(self._pidfds.values())

    def wait(self, seconds: float) -> bool:
        """Wait until all have ended, or until that time is over; say whether they have."""
        deadline = time.monotonic() + max(0.0, seconds)
        while self._pidfds:
            remaining = deadline - time.monotonic()
            for pidfd, _ in self._poll.poll(max(0.0, remaining) * 1000):
                self._poll.unregister(pidfd)
                os.close(pidfd)
                del self._pidfds[pidfd]
            if remaining <= 0:
                break
        return not self._pidfds
