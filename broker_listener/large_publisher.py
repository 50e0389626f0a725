"""Publishes a message that is larger than any job: one at a time, piece by piece, on a channel that is opened for it.

A channel takes nothing else while a message is half written, and a broker that finds a message too large closes it
(406): neither may touch what else is published.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from broker_listener.broker import Connection
from broker_listener.confirms import Outcome
from broker_listener.large_body import LargeBody
from broker_listener.limited_log import LimitedLog
from broker_listener.link import Losable, Lost

LOG: Final = logging.getLogger(__name__)


class LargePublisher:
    """Publishes on the connection that there is; ``tell(token, outcome)`` is called once for each message."""

    def __init__(self, tell: Callable[[int, Outcome], None]) -> None:
        self._tell = tell
        self._connection: Connection | None = None
        self._task: asyncio.Task[Outcome] | None = None
        self._limited = LimitedLog(LOG)

    def __len__(self) -> int:
        """Return how many messages have no answer: 0 or 1."""
        return self._task is not None

    def begin(self, connection: Connection) -> None:
        """Use this connection."""
        self._connection = connection

    def lost(self) -> None:
        """Tell that a message without an answer is lost: the connection is gone."""
        self._connection = None
        if self._task is not None:
            self._task.cancel()

    def publish(self, token: int, target: tuple[str, str], body: LargeBody, properties: bytes) -> None:
        """Publish as mandatory; LOST without a connection, for a body that was not kept, and beside another message."""
        connection = self._connection
        if connection is None or self._task is not None or not body.kept:
            asyncio.get_running_loop().call_soon(self._tell, token, Outcome.LOST)
            return
        if len(properties) > connection.max_properties:
            asyncio.get_running_loop().call_soon(self._tell, token, Outcome.NACKED)
            return
        self._task = asyncio.get_running_loop().create_task(self._published(connection, target, body, properties))
        self._task.add_done_callback(lambda task: self._ended(token, task))

    async def _published(
        self, connection: Connection, target: tuple[str, str], body: LargeBody, properties: bytes
    ) -> Outcome:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        returned = False

        def on_returned(*_: object) -> None:
            nonlocal returned
            returned = True

        def on_confirmed(_sequence: int, _multiple: bool, taken: bool) -> None:  # noqa: FBT001 - as on the wire
            if not answer.done():
                confirmed = Outcome.CONFIRMED if taken else Outcome.NACKED
                answer.set_result(Outcome.RETURNED if returned else confirmed)

        def on_lost(reason: str) -> None:
            if not answer.done():
                self._limited.warning("event=large_message_not_published size=%d reason=%r", body.size, reason)
                answer.set_result(Outcome.LOST)

        channel = await connection.open_channel(Losable(on_lost))
        await channel.confirm(on_confirmed, on_returned)
        await channel.publish_large(target, body, properties)
        outcome = await answer
        channel.close()
        return outcome

    def _ended(self, token: int, task: asyncio.Task[Outcome]) -> None:
        self._task = None
        outcome = Outcome.LOST
        if not task.cancelled():
            error = task.exception()
            if error is None:
                outcome = task.result()
            elif not isinstance(error, Lost):
                self._limited.warning("event=large_message_failed", cause=error)
        self._tell(token, outcome)
