"""Connections of whoever looks at us: a few at a time, each for a few seconds, and the loop waits for none of them.

Who connects is believed in nothing. More than ``MAX_CLIENTS`` at a time are closed at once, one that does not read or
write loses its connection when its time is over, and what goes wrong with one ends that one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from broker_listener.limited_log import LimitedLog

LOG: Final = logging.getLogger(__name__)
MAX_CLIENTS: Final = 8
SECONDS: Final = 5.0
"""From the connection to its end."""

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Answers one client; the connection is closed afterwards."""


class BoundedServer:
    """Gives each client that there is room for to ``answer``."""

    def __init__(self, name: str, answer: Answer) -> None:
        self._name = name
        self._answer = answer
        self._clients: set[asyncio.Task[None]] = set()
        self._limited = LimitedLog(LOG)

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection: ``asyncio.start_server`` and ``start_unix_server`` call it."""
        if len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    def close(self) -> None:
        """End all connections."""
        for task in self._clients:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                await self._answer(reader, writer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError):
            return  # it has gone, is too slow, or sends what is no request: its own matter
        except Exception as error:  # noqa: BLE001 - a bug in an answer ends that answer
            self._limited.warning("event=%s_failed", self._name, cause=error)
        finally:
            writer.transport.abort()
