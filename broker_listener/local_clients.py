"""Whoever connects to look at us: a few at a time, each for a few seconds, and the loop waits for none of them.

Who connects is believed in nothing. Connections are taken up one by one with a pause between, while there is room;
more of them wait in the kernel's short queue and cost nothing here, so that nobody can keep the loop busy with them.
What goes wrong with one ends that one.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from broker_listener.limited_log import LimitedLog

LOG: Final = logging.getLogger(__name__)
MAX_CLIENTS: Final = 8
SECONDS: Final = 5.0
"""From the connection to its end."""
PAUSE: Final = 0.02
"""Seconds between two connections: at most 50 a second."""
PAUSE_AFTER_A_FAULT: Final = 1.0

Answer = Callable[[socket.socket], Awaitable[None]]
"""Answers one client over a socket that does not block; the connection is closed afterwards."""


class LocalClients:
    """Answers those who connect to a listening socket, which is closed at the end."""

    def __init__(self, name: str, listening: socket.socket, answer: Answer) -> None:
        self._name = name
        self._listening = listening
        self._answer = answer
        self._room = asyncio.Semaphore(MAX_CLIENTS)
        self._clients: set[asyncio.Task[None]] = set()
        self._limited = LimitedLog(LOG)
        listening.setblocking(False)
        listening.listen(MAX_CLIENTS)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """End all connections, and take no more."""
        for task in (self._accepting, *self._clients):
            task.cancel()
        self._listening.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                client, _ = await loop.sock_accept(self._listening)
            except OSError as error:  # it has gone already; or there are no descriptors left
                self._room.release()
                self._limited.warning("event=%s_not_accepted reason=%r", self._name, str(error))
                await asyncio.sleep(PAUSE_AFTER_A_FAULT)
                continue
            task = loop.create_task(self._serve(client))
            self._clients.add(task)
            task.add_done_callback(self._ended)
            await asyncio.sleep(PAUSE)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._room.release()

    async def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                async with asyncio.timeout(SECONDS):
                    await self._answer(client)
        except OSError:  # TimeoutError is one
            return  # it has gone, or is too slow: its own matter
        except Exception as error:  # noqa: BLE001 - a bug in an answer ends that answer
            self._limited.warning("event=%s_failed", self._name, cause=error)
