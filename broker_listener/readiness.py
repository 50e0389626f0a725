"""Whose executor has a connection to the broker: the sign that it can take jobs.

Read from the kernel without any privilege, in a thread, so that the loop is never held: through sock_diag
(sock_diag(7)), which tells a socket's cgroup too, or where that is not to be had from /proc/net/tcp and tcp6 (proc(5)).
What the kernel says is trusted; what a user can do is open connections, so one counts only if it belongs to the
executor's own cgroup or, where that is not known, was not there before the start. Nothing is read while nobody waits.
"""

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from broker_listener.sockets import BrokerSocket, established, plain

LOG: Final = logging.getLogger(__name__)
POLL: Final = 0.1
POLL_LATE: Final = 0.5
LATE: Final = 10.0
FRESH: Final = 0.05
"""Seconds that a snapshot serves, so that a burst of starts costs one."""


@dataclass(frozen=True, slots=True)
class _Watch:
    uid: int
    cgroup: int | None
    before: frozenset[int]
    since: float


class Readiness:
    """Watches for users' connections to the broker's ports. ``on_ready(user)`` is called once, in the loop."""

    def __init__(self, ports: Iterable[int], addresses: Iterable[str], on_ready: Callable[[str], None]) -> None:
        self._ports = frozenset(ports)
        self._addresses = frozenset(plain(ipaddress.ip_address(address)) for address in addresses)
        self._on_ready = on_ready
        self._watches: dict[str, _Watch] = {}
        self._poll: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="readiness")
        self._snapshot: asyncio.Future[tuple[BrokerSocket, ...]] | None = None
        self._snapshot_at = 0.0

    async def sockets_now(self) -> frozenset[int]:
        """Give the inodes of all connections to the broker that there are; for ``before``, taken before a start."""
        return frozenset(socket.inode for socket in await self._sockets())

    def watch(self, user: str, uid: int, cgroup: int | None, before: frozenset[int], since: float) -> None:
        """Watch until the user's executor is connected; ``since`` is the start's time.monotonic()."""
        self._watches[user] = _Watch(uid, cgroup, before, since)
        if self._poll is None:
            self._poll = asyncio.get_running_loop().create_task(self._run())

    def unwatch(self, user: str) -> None:
        """Watch no more; a user who is not watched is none."""
        self._watches.pop(user, None)

    def close(self) -> None:
        """Watch nobody any more; for good."""
        self._watches.clear()
        if self._poll is not None:
            self._poll.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        told = ""
        try:
            while self._watches:
                fault = await self._look()
                if fault and fault != told:
                    LOG.error("event=readiness_failed reason=%r", fault)
                told = fault
                newest = max((watch.since for watch in self._watches.values()), default=0.0)
                await asyncio.sleep(POLL if time.monotonic() - newest < LATE else POLL_LATE)
        finally:
            self._poll = None

    async def _look(self) -> str:
        """Tell of those who are connected; give what went wrong, if so."""
        try:
            sockets = await self._sockets()
        except OSError as error:
            return f"cannot read the kernel's connections: {error}"
        by_uid: dict[int, list[BrokerSocket]] = {}
        for socket in sockets:
            by_uid.setdefault(socket.uid, []).append(socket)
        ready = [
            user
            for user, watch in self._watches.items()
            if any(_belongs(socket, watch) for socket in by_uid.get(watch.uid, ()))
        ]
        for user in ready:
            if self._watches.pop(user, None) is not None:
                self._tell(user)
        return ""

    def _tell(self, user: str) -> None:
        try:
            self._on_ready(user)
        except Exception:
            LOG.exception("event=on_ready_failed user=%s", user)

    async def _sockets(self) -> tuple[BrokerSocket, ...]:
        now = time.monotonic()
        if self._snapshot is None or (self._snapshot.done() and now - self._snapshot_at > FRESH):
            self._snapshot_at = now
            self._snapshot = asyncio.get_running_loop().run_in_executor(self._thread, established, self._ports)
        sockets = await asyncio.shield(self._snapshot)
        if not self._addresses:
            return sockets
        return tuple(socket for socket in sockets if socket.address in self._addresses)


def _belongs(socket: BrokerSocket, watch: _Watch) -> bool:
    if watch.cgroup is not None and socket.cgroup is not None:
        return socket.cgroup == watch.cgroup
    return socket.inode not in watch.before
