"""What is published and how the broker answered: hand-overs and parked messages over one confirmed channel.

The broker's answers are trusted as far as they go: what it says of a message that is not waited for changes nothing,
and a returned message that cannot be told from others makes all of them count as not taken. A message is told of
exactly once, and never as CONFIRMED unless the broker took it: a duplicate is possible, a loss is not.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple, Protocol

from broker_listener.broker import Channel, Connection
from broker_listener.config import BrokerConfig
from broker_listener.limited_log import LimitedLog

LOG: Final = logging.getLogger(__name__)
PARKED_BYTES: Final = 2**30
"""``x-max-length-bytes`` of the parked queue."""


class Outcome(Enum):
    """How a message that was published ended."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"
    """No queue was there to take it (basic.return)."""
    NACKED = "nacked"
    """The broker could not take it, as a full parked queue does."""
    LOST = "lost"
    """The channel ended before an answer: it may or may not have arrived."""


class PublishEvents(Protocol):
    """Who published."""

    def on_published(self, token: int, outcome: Outcome) -> None:
        """Take the end of what was published with this token."""

    def on_publishable(self, can_publish: bool) -> None:  # noqa: FBT001 - the one thing it says
        """Take whether publishing is possible now."""


class _Unconfirmed(NamedTuple):
    token: int
    target: tuple[str, str]
    body: bytes
    properties: bytes


class Publisher:
    """Publishes while there is a channel that is not blocked; tells of each message's end."""

    name: Final = "publish"

    def __init__(self, config: BrokerConfig, events: PublishEvents) -> None:
        self._config = config
        self._events = events
        self._target = (config.exchange, config.routing_key if config.exchange else config.queue)
        self._unconfirmed: dict[int, _Unconfirmed] = {}
        self._returned: set[int] = set()
        self._sequence = 0
        self._max_properties = 0
        self._channel: Channel | None = None
        self._blocked = False
        self._stopping = False
        self._stopped: asyncio.Future[None] | None = None
        self._limited = LimitedLog(LOG)
        self.can_publish = False

    async def serve(self, connection: "Connection", ready: Callable[[], None]) -> None:
        """Make a channel ready and keep it until it is lost (raises Lost) or ``stop`` was called."""
        await self._declare_parked_queue(connection)
        channel = await connection.open_channel()
        if self._config.exchange:
            await channel.expect_exchange(self._config.exchange)
        await channel.confirm(self._on_confirmed, self._on_returned)
        self._channel, self._sequence, self._max_properties = channel, 0, connection.max_properties
        ready()
        self._tell_publishable()
        self._stopped = connection.future()
        await self._stopped

    def stop(self) -> None:
        """End once nothing is without an answer."""
        self._stopping = True
        self._stop_if_answered()

    def lost(self) -> None:
        """Tell that every message without an answer is lost; the channel is gone."""
        self._channel, self._blocked = None, False
        self._tell_publishable()
        unconfirmed, self._unconfirmed, self._returned = self._unconfirmed, {}, set()
        for sequence in unconfirmed:
            self._tell(unconfirmed[sequence].token, Outcome.LOST)

    def blocked(self, *, on: bool) -> None:
        """Publish nothing while the broker is short of memory or disk (rabbitmq.com/docs/connection-blocked)."""
        self._blocked = on
        self._tell_publishable()

    def hand_over(self, token: int, body: bytes, properties: bytes) -> None:
        """Publish to where executors get their jobs from."""
        self._publish(_Unconfirmed(token, self._target, body, properties))

    def park(self, token: int, body: bytes, properties: bytes) -> None:
        """Publish to the parked queue, through the default exchange."""
        self._publish(_Unconfirmed(token, ("", self._config.parked_queue), body, properties))

    def _publish(self, message: _Unconfirmed) -> None:
        if self._channel is None or not self.can_publish or len(message.properties) > self._max_properties:
            # Told later, as every outcome: whoever publishes has not finished its own step yet. Properties over the
            # limit would end the connection (501 FRAME_ERROR) and with it everything that is unconfirmed.
            outcome = Outcome.NACKED if self.can_publish else Outcome.LOST
            asyncio.get_running_loop().call_soon(self._tell, message.token, outcome)
            return
        self._sequence += 1
        self._unconfirmed[self._sequence] = message
        self._channel.publish(*message.target, message.body, message.properties)

    def _on_confirmed(self, sequence: int, multiple: bool, taken: bool) -> None:  # noqa: FBT001 - as on the wire
        answered = [sequence]
        if multiple:
            answered = [waiting for waiting in self._unconfirmed if waiting <= sequence]
        for one in answered:
            message = self._unconfirmed.pop(one, None)
            if message is None:
                self._limited.warning("event=confirm_of_nothing sequence=%d", one)
                continue
            if one in self._returned:
                self._returned.discard(one)
                self._tell(message.token, Outcome.RETURNED)
            else:
                self._tell(message.token, Outcome.CONFIRMED if taken else Outcome.NACKED)
        if self._stopping:
            self._stop_if_answered()

    def _stop_if_answered(self) -> None:
        if self._stopped is not None and not self._stopped.done() and not self._unconfirmed:
            self._stopped.set_result(None)

    def _on_returned(self, target: tuple[str, str], body: bytes, properties: bytes) -> None:
        """Mark the oldest equal message; its confirm follows (rabbitmq.com/docs/confirms#when-publishes-are-confirmed).

        The broker takes a BCC header off before it returns a message: then every message of that body is marked.
        """
        waiting = {number: one for number, one in self._unconfirmed.items() if number not in self._returned}
        for number, one in waiting.items():
            if one.body == body and one.properties == properties and one.target == target:
                self._returned.add(number)
                return
        alike = [number for number, one in waiting.items() if one.body == body] or list(waiting)
        self._limited.warning(
            "event=return_not_recognised unconfirmed=%d taken_as_returned=%d", len(waiting), len(alike)
        )
        self._returned.update(alike)

    def _tell(self, token: int, outcome: Outcome) -> None:
        try:
            self._events.on_published(token, outcome)
        except Exception as error:  # noqa: BLE001 - a bug in one message's step must not end the connection
            self._limited.warning("event=outcome_failed token=%d outcome=%s", token, outcome.value, cause=error)

    def _tell_publishable(self) -> None:
        can_publish = self._channel is not None and not self._blocked
        if can_publish == self.can_publish:
            return
        self.can_publish = can_publish
        try:
            self._events.on_publishable(can_publish)
        except Exception as error:  # noqa: BLE001 - as above
            self._limited.warning("event=publishable_failed can_publish=%s", can_publish, cause=error)

    async def _declare_parked_queue(self, connection: "Connection") -> None:
        """Declare it on a channel of its own: hand-overs go on where the queue cannot be had, parking is returned."""
        fault = await connection.declare_queue(
            self._config.parked_queue, {"x-max-length-bytes": PARKED_BYTES, "x-overflow": "reject-publish"}
        )
        if fault is not None:
            LOG.error("event=parked_queue_not_declared queue=%s reason=%s", self._config.parked_queue, fault)
