"""Hand-overs and parked messages, over one connection and a confirmed channel for each.

What is published while that is not possible is LOST: told so, and whoever published tries again. Nothing is queued
here, and what the broker answers is read in ``confirms``.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from broker_listener.broker import Connection
from broker_listener.config import BrokerConfig
from broker_listener.confirms import Confirms, Message, Outcome
from broker_listener.large_body import LargeBody
from broker_listener.limited_log import LimitedLog
from broker_listener.parked_queue import ParkedQueue

LOG: Final = logging.getLogger(__name__)


class PublishEvents(Protocol):
    """Who published."""

    def on_published(self, token: int, outcome: Outcome) -> None:
        """Take the end of what was published with this token."""

    def on_publishable(self, can_publish: bool) -> None:  # noqa: FBT001 - the one thing it says
        """Take whether publishing is possible now."""


class Publisher:
    """Publishes while there is a channel that is not blocked; tells of each message's end."""

    name: Final = "publish"

    def __init__(
        self, config: BrokerConfig, events: PublishEvents, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """``on_change`` is called whenever ``can_publish`` has changed."""
        self._config = config
        self._events = events
        self._on_change = on_change
        self._target = (config.exchange, config.routing_key if config.exchange else config.queue)
        self._hand_overs = Confirms(self._tell)
        self._parked = ParkedQueue(config.parked_queue, config.urls, self._tell)
        self.blocked_since: float | None = None
        """Since when the broker takes nothing, time.monotonic(); None while it does."""
        self._stopping = False
        self._stopped: asyncio.Future[None] | None = None
        self._limited = LimitedLog(LOG)
        self._proven = False
        """Whether the broker has read a message on this connection: it tells of an alarm after the first only."""
        self.can_publish = False

    async def serve(self, connection: Connection, ready: Callable[[], None]) -> None:
        """Make the channels ready and keep them until they are lost (raises Lost) or ``stop`` was called."""
        await self._parked.begin(connection)
        channel = await connection.open_channel()
        if self._config.exchange:
            await channel.expect_exchange(self._config.exchange)
        await self._hand_overs.begin(channel, connection.max_properties)
        self._stopped = connection.future()
        ready()
        await self._parked.prove(connection)
        self._proven = True
        self._tell_publishable()
        if self._stopping:
            self._stop_if_answered()
        await self._stopped

    def stop(self) -> None:
        """End once nothing is without an answer."""
        self._stopping = True
        self._stop_if_answered()

    def lost(self) -> None:
        """Tell that every message without an answer is lost; the connection is gone."""
        self._proven, self.blocked_since = False, None
        self._tell_publishable(connected=False)
        self._hand_overs.lost()
        self._parked.lost()

    def blocked(self, *, on: bool) -> None:
        """Publish nothing while the broker is short of memory or disk (rabbitmq.com/docs/connection-blocked)."""
        self.blocked_since = (self.blocked_since or time.monotonic()) if on else None
        self._tell_publishable()

    def hand_over(self, token: int, body: bytes, properties: bytes) -> None:
        """Publish to where executors get their jobs from."""
        if self._may_publish(token):
            self._hand_overs.publish(Message(token, self._target, body, properties))

    def park(self, token: int, body: bytes, properties: bytes) -> None:
        """Publish to the parked queue."""
        if self._may_publish(token):
            self._parked.publish(token, body, properties)

    def put_back(self, token: int, body: bytes, properties: bytes) -> None:
        """Publish to the jobs queue and to no other, whatever is bound to the exchange."""
        if self._may_publish(token):
            self._parked.publish_to(self._config.queue, token, body, properties)

    def park_large(self, token: int, body: LargeBody, properties: bytes) -> None:
        """Publish a large message to the parked queue."""
        if self._may_publish(token):
            self._parked.publish_large(token, body, properties)

    def put_back_large(self, token: int, body: LargeBody, properties: bytes) -> None:
        """Publish a large message to the jobs queue, and nowhere else."""
        if self._may_publish(token):
            self._parked.publish_large(token, body, properties, self._config.queue)

    def _may_publish(self, token: int) -> bool:
        if not self.can_publish:
            # Told later, as every outcome: whoever publishes has not finished its own step yet.
            asyncio.get_running_loop().call_soon(self._tell, token, Outcome.LOST)
        return self.can_publish

    def _stop_if_answered(self) -> None:
        unanswered = len(self._hand_overs) + len(self._parked)
        if self._stopped is not None and not self._stopped.done() and not unanswered:
            self._stopped.set_result(None)

    def _tell(self, token: int, outcome: Outcome) -> None:
        try:
            self._events.on_published(token, outcome)
        except Exception as error:  # noqa: BLE001 - a bug in one message's step must not end the connection
            self._limited.warning("event=outcome_failed token=%d outcome=%s", token, outcome.value, cause=error)
        if self._stopping:
            self._stop_if_answered()

    def _tell_publishable(self, *, connected: bool = True) -> None:
        can_publish = connected and self._proven and self._hand_overs.open and self.blocked_since is None
        if can_publish == self.can_publish:
            return
        self.can_publish = can_publish
        self._on_change()
        try:
            self._events.on_publishable(can_publish)
        except Exception as error:  # noqa: BLE001 - as above
            self._limited.warning("event=publishable_failed can_publish=%s", can_publish, cause=error)
