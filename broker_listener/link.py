"""A connection that is always wanted: made, used, explained when it is lost, and made anew after a growing pause.

It knows no AMQP: ``connect`` makes a connection to one URL, a role uses it. Of several URLs one is taken at random,
the next where that fails. Nothing here ever gives up and nothing is tried without a pause.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from broker_listener.config import BrokerUrl, parse_url

LOG: Final = logging.getLogger(__name__)
PAUSE_MIN: Final = 0.1
PAUSE_MAX: Final = 2.0
STEADY: Final = 10.0
"""Seconds that a connection must have been ready for the pause to begin small again."""


class Lost(Exception):
    """A connection or channel is gone, or could not be had; the text says why, in ASCII and cut."""


class Losable:
    """What can be lost, once, and ``on_lost`` is told why. What waits on it fails with Lost, whenever it began to."""

    def __init__(self, on_lost: Callable[[str], None] = lambda _: None) -> None:
        self._on_lost = on_lost
        self._waiting: set[asyncio.Future[Any]] = set()
        self._reason: str | None = None

    def future(self) -> asyncio.Future[Any]:
        """Give a future that fails with Lost when it is lost, or because it is."""
        future = asyncio.get_running_loop().create_future()
        if self._reason is not None:
            future.set_exception(Lost(self._reason))
            return future
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def fail(self, reason: str) -> None:
        """Take it as lost; the first reason counts."""
        if self._reason is not None:
            return
        self._reason = reason
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(Lost(reason))
        self._on_lost(reason)


class Connection(Protocol):
    """What a link sees of a connection."""

    frame_max: int

    async def close(self) -> None:
        """Close it in good order, or drop it; raises nothing."""


class Role(Protocol):
    """What a connection is for."""

    @property
    def name(self) -> str:
        """Its name in the log and at the broker."""

    async def serve(self, connection: Any, ready: Callable[[], None]) -> None:
        """Use it, calling ``ready`` when all is set up, until it is lost (raises Lost) or ``stop`` was called."""

    def lost(self) -> None:
        """Take that the connection is of no use any more."""

    def blocked(self, *, on: bool) -> None:
        """Take that the broker reads nothing from this connection, or does again."""

    def stop(self) -> None:
        """Let ``serve`` end in good order."""


Connect = Callable[[BrokerUrl, Role], Awaitable[Connection]]
"""Makes a connection that tells the role when it is blocked; raises Lost."""


class Link:
    """Keeps a role connected."""

    def __init__(self, urls: tuple[str, ...], role: Role, connect: Connect) -> None:
        self._urls = [parse_url(url) for url in urls]
        self._role = role
        self._connect = connect
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._ready_since: float | None = None
        self._reason = ""
        self._since = time.monotonic()
        self.url = self._urls[0]
        self.frame_max = 131072
        self.losses = 0
        """How often a connection that could be used was lost."""

    def start(self) -> None:
        """Begin; the role is told the rest."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - the caller's share of its own time to stop
        """End in good order, or after ``timeout`` seconds all the same."""
        if self._task is None:
            return
        self._stopping = True
        self._role.stop()
        if self._ready_since is None:
            self._task.cancel()
        _, pending = await asyncio.wait({self._task}, timeout=timeout)
        for task in pending:
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
        self._ready_since = None

    @property
    def up(self) -> bool:
        """Whether the role can use its connection."""
        return self._ready_since is not None

    @property
    def since(self) -> float:
        """Since when it is up, or down: time.monotonic()."""
        return self._since if self._ready_since is None else self._ready_since

    @property
    def why(self) -> str | None:
        """Why it is down, None while it is up."""
        return (self._reason or "not connected yet") if self._ready_since is None else None

    @property
    def state(self) -> str:
        """What it does, for the status line."""
        at = f"{self.url.host}:{self.url.port}"
        if self._ready_since is not None:
            return f"up at {at}"
        if self._stopping:
            return "closed"
        return f"down: {self._reason}" if self._reason else f"connecting to {at}"

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = PAUSE_MIN
        while True:
            reason = await self._session()
            if self._stopping:
                return
            ready_since, self._ready_since = self._ready_since, None
            if ready_since is not None:
                self.losses += 1
                self._since = loop.time()
            if ready_since is not None and loop.time() - ready_since > STEADY:
                pause = PAUSE_MIN
            if reason != self._reason or ready_since is not None:  # away for days is one line, not one in each pause
                LOG.warning("event=broker_down connection=%s reason=%r", self._role.name, reason)
                self._reason = reason
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause = min(2 * pause, PAUSE_MAX)

    async def _session(self) -> str:
        """Connect, let the role work, and say why that ended."""
        try:
            connection = await self._connected()
            try:
                self.frame_max = connection.frame_max
                await self._role.serve(connection, self._ready)
            finally:
                self._role.lost()
                await connection.close()
        except Lost as lost:
            return str(lost)
        except Exception as error:
            LOG.exception("event=broker_failed connection=%s", self._role.name)
            return f"a bug here: {type(error).__name__}"
        return "closed"

    async def _connected(self) -> Connection:
        reasons = []
        for url in random.sample(self._urls, len(self._urls)):
            self.url = url
            try:
                return await self._connect(url, self._role)
            except Lost as lost:
                reasons.append(f"{url.host}:{url.port}: {lost}")
        raise Lost("; ".join(sorted(reasons)))

    def _ready(self) -> None:
        if self._ready_since is None:
            self._ready_since = asyncio.get_running_loop().time()
            LOG.info("event=broker_up connection=%s host=%s port=%d", self._role.name, self.url.host, self.url.port)
