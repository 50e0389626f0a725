"""The exchange through which listeners of several hosts hear each other, and this run's own queue at it.

Whoever may publish there could have sent what arrives: only what the broker says our own account has sent is looked
at (rabbitmq.com/docs/validated-user-id), the rest is counted. It is used over a connection of its own, so that nothing
that goes wrong here touches a job. What cannot be published is not kept: ``Hosts`` knows what is still to be said.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from broker_listener.broker import Connection
from broker_listener.confirms import Confirms, Message, Outcome
from broker_listener.host_messages import HostMessage, decode, encode
from broker_listener.limited_log import LimitedLog
from broker_listener.link import Lost
from broker_listener.properties import BadProperties, short_lived, user_id

LOG: Final = logging.getLogger(__name__)
EXPIRATION: Final = 15_000
"""Milliseconds for which a message that nobody has taken is worth something."""
MAX_UNCONFIRMED: Final = 128
_OTHER_KIND: Final = "PRECONDITION_FAILED"
MAX_QUEUE_BYTES: Final = 2**24
"""``x-max-length-bytes``: of a listener that reads no more, the oldest messages are dropped; it will notice the gap."""


class HostExchangeEvents(Protocol):
    """Who talks to the other hosts."""

    def on_joined(self) -> None:
        """Take that the others can be heard and spoken to."""

    def on_parted(self) -> None:
        """Take that they cannot any more."""

    def on_message(self, message: HostMessage) -> None:
        """Take a message of the listeners' account, our own ones among them."""


class HostExchange:
    """What the connection named ``hosts`` is for; ``account`` gives whose messages count."""

    name: Final = "hosts"

    def __init__(self, exchange: str, queue: str, account: Callable[[], str], events: HostExchangeEvents) -> None:
        """``queue`` begins the names of our queues: each connection has one of its own."""
        self._exchange, self._queue, self._account, self._events = exchange, queue, account, events
        self._connections = 0
        self._confirms = Confirms(self._told)
        self._ready: Callable[[], None] = _nothing
        self._stopped: asyncio.Future[None] | None = None
        self._joined = False
        self._limited = LimitedLog(LOG)
        self.blocked_since: float | None = None
        """Since when the broker takes nothing, time.monotonic(); None while it does."""
        self.ignored = 0
        """Messages of others than the listeners' account, and what is no message."""

    @property
    def takes_more(self) -> bool:
        """Whether a message that is published now has a chance."""
        return self._confirms.open and self.blocked_since is None and len(self._confirms) < MAX_UNCONFIRMED

    async def serve(self, connection: Connection, ready: Callable[[], None]) -> None:
        """Listen and be heard until the connection is lost (raises Lost) or ``stop`` was called."""
        self._connections += 1
        self._ready = ready
        queue = f"{self._queue}.{self._connections}"
        channel = await connection.open_channel()
        try:
            await channel.declare_fanout(self._exchange)
        except Lost as lost:
            advice = " (delete it: the listeners make it as it has to be)" if _OTHER_KIND in str(lost) else ""
            raise Lost(f"{lost}{advice}") from None
        await channel.declare_own_queue(queue, self._exchange, {"x-max-length-bytes": MAX_QUEUE_BYTES})
        await channel.consume(queue, self._on_delivery, settled=True)
        await self._confirms.begin(channel, connection.max_properties)
        self._stopped, self._joined = connection.future(), True
        self._events.on_joined()
        await self._stopped

    def stop(self) -> None:
        """End at once."""
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(None)

    def drop(self, reason: str) -> None:
        """Take the connection for lost, so that another is made: of no use though nothing says so."""
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_exception(Lost(reason))

    def lost(self) -> None:
        """Take that the connection is gone."""
        joined, self._joined = self._joined, False
        self.blocked_since, self._ready = None, _nothing
        self._confirms.lost()
        if joined:
            self._events.on_parted()

    def blocked(self, *, on: bool) -> None:
        """Publish nothing while the broker is short of memory or disk (rabbitmq.com/docs/connection-blocked)."""
        self.blocked_since = (self.blocked_since or time.monotonic()) if on else None

    def publish(self, message: HostMessage) -> None:
        """Say it to all."""
        properties = short_lived(self._account(), EXPIRATION)
        self._confirms.publish(Message(message.seq, (self._exchange, ""), encode(message), properties))

    def _told(self, _sequence: int, outcome: Outcome) -> None:
        if outcome is Outcome.CONFIRMED:  # now it is known that we may write, too
            self._ready()

    def _on_delivery(
        self,
        _tag: int,
        body: bytes,
        properties: bytes,
        _redelivered: bool,  # noqa: FBT001
        _exchange: str,
        _routing_key: str,
    ) -> None:
        try:
            sender = user_id(properties)
        except BadProperties:
            sender = None
        message = decode(body) if sender == self._account().encode() else None
        if message is None:
            self.ignored += 1
            self._limited.warning("event=host_message_ignored sender=%r size=%d", sender, len(body))
            return
        try:
            self._events.on_message(message)
        except Exception as error:  # noqa: BLE001 - it ends this message, not the connection
            self._limited.warning("event=host_message_failed host=%s", message.host, cause=error)


def _nothing() -> None:
    """Be told of nothing."""
