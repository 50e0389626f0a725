"""One timer for all users: who is to be looked at again, and when the first of them is. Time is an argument.

A user has at most one time that counts, in ``wake_at``. Entries that a later setting made void stay in the heap until
they are met, or until they outnumber what counts.
"""

import heapq
from collections.abc import Iterator
from math import inf

from broker_listener.user import User


class Timers:
    """A heap of users by the time of their next look."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, User]] = []
        self._count = 0
        self._set = 0

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, user: User, at: float) -> None:
        """Look at the user at this time and at no other; ``inf`` is never."""
        if at == user.wake_at:
            return
        self._set += (at != inf) - (user.wake_at != inf)
        user.wake_at = at
        if at == inf:
            return
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, user))
        if len(self._heap) > 64 + 2 * self._set:
            self._heap = [entry for entry in self._heap if entry[2].wake_at == entry[0]]
            heapq.heapify(self._heap)

    def next_at(self) -> float:
        """Give the first time that counts."""
        heap = self._heap
        while heap and heap[0][2].wake_at != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else inf

    def due(self, now: float) -> Iterator[User]:
        """Give each user whose time has come, once: what is set meanwhile is for the next call."""
        users = []
        while self.next_at() <= now:
            _, _, user = heapq.heappop(self._heap)
            user.wake_at = inf
            self._set -= 1
            users.append(user)
        return iter(users)
