"""What is consumed and how it is settled: deliveries from the one queue, acks in batches, give-backs by nack.

A delivery is bytes from whoever may publish; here nothing of it is looked at. Its tag belongs to one channel
(AMQP 0-9-1 section 3.1.8), which ``generation`` counts: settling a delivery of an older channel does nothing, the
broker has given it to somebody already.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from broker_listener.broker import Channel, Connection
from broker_listener.config import BrokerConfig
from broker_listener.large_body import LargeBody
from broker_listener.limited_log import LimitedLog

LOG: Final = logging.getLogger(__name__)
RETRY_AFTER_A_BUG: Final = 60.0
"""Seconds until a delivery that made its step raise is given back; at once it would come again for ever."""


class Delivery(NamedTuple):
    """One message as the broker delivered it; ``properties`` are its raw bytes.

    A body over ``max_body`` is ``large`` and not in ``body``.
    """

    generation: int
    tag: int
    body: bytes
    properties: bytes
    redelivered: bool
    exchange: str
    routing_key: str
    large: LargeBody | None = None


class ConsumeEvents(Protocol):
    """Who consumes."""

    def on_delivery(self, delivery: Delivery) -> None:
        """Take a delivery; it is settled by ``ack`` or ``give_back``, later or at once."""

    def keeps(self, size: int) -> bool:
        """Return whether a body over ``max_body`` that begins to arrive is to be kept."""

    def on_deliveries_lost(self) -> None:
        """Forget every unsettled delivery: the channel is gone and the broker delivers them again."""


class Settlements:
    """The tags of one channel that are not settled yet, and which acks and nacks settle them in the fewest frames."""

    def __init__(self) -> None:
        self._unsettled: set[int] = set()
        self._lowest = self._highest = 0
        """Below ``_lowest`` everything is settled; it moves up when it is asked for."""
        self._acked: list[int] = []
        self._nacked: list[int] = []

    def delivered(self, tag: int) -> None:
        """Remember a tag; they grow by one."""
        self._unsettled.add(tag)
        self._highest = tag

    def ack(self, tag: int) -> bool:
        """Settle as done; say whether this is the first of a batch."""
        return self._settle(tag, self._acked)

    def give_back(self, tag: int) -> bool:
        """Settle as not done; say whether this is the first of a batch."""
        return self._settle(tag, self._nacked)

    def flush(self) -> tuple[list[int], int, list[int]]:
        """Give what to send, in this order: the nacks, the tag to ack with all below it (0 = none), the other acks."""
        acked, nacked = self._acked, self._nacked
        self._acked, self._nacked = [], []
        while self._lowest <= self._highest and self._lowest not in self._unsettled:
            self._lowest += 1
        below = [tag for tag in acked if tag < self._lowest]
        return nacked, max(below, default=0), [tag for tag in acked if tag > self._lowest]

    def _settle(self, tag: int, batch: list[int]) -> bool:
        if tag not in self._unsettled:
            return False
        self._unsettled.remove(tag)
        batch.append(tag)
        return len(self._acked) + len(self._nacked) == 1


class Consumer:
    """Consumes while that is wanted and there is a channel; held deliveries stay valid while it is not wanted."""

    name: Final = "consume"

    def __init__(self, config: BrokerConfig, events: ConsumeEvents) -> None:
        self._config = config
        self._events = events
        self._channel: Channel | None = None
        self._settlements = Settlements()
        self._change: asyncio.Future[None] | None = None
        self._limited = LimitedLog(LOG)
        self.generation = 0
        self._wanted = True
        self._may_begin = False
        self.waiting_since: float | None = None
        """Since when it is ready and may not begin, time.monotonic(); None where that is not so."""
        self._stopping = False

    async def serve(self, connection: "Connection", ready: Callable[[], None]) -> None:
        """Make a channel ready and consume as wanted until it is lost (raises Lost) or ``stop`` was called."""
        channel = await connection.open_channel(begin_large=self._begin_large(self.generation + 1))
        await channel.expect_queue(self._config.queue)
        await channel.qos(self._config.prefetch)
        self.generation += 1
        self._settlements = Settlements()
        self._channel = channel
        consuming = ""
        while consuming or not self._stopping:
            if self._wanted and self._may_begin and not consuming:
                consuming = await channel.consume(self._config.queue, self._on_delivery)
            elif consuming and not self._wanted:
                await channel.cancel(consuming)
                consuming = ""
            else:
                self.waiting_since = time.monotonic() if self._wanted and not consuming else None
                ready()
                self._change = connection.future()
                await self._change
        self.flush()

    def stop(self) -> None:
        """End the consumer and send what is settled."""
        self._stopping = True
        self.want(on=False)

    def lost(self) -> None:
        """Tell that what was delivered is void; the channel is gone."""
        if self._channel is None:
            return
        self._channel, self._settlements, self.waiting_since = None, Settlements(), None
        try:
            self._events.on_deliveries_lost()
        except Exception as error:  # noqa: BLE001 - the connection is made anew whatever its user does
            self._limited.warning("event=deliveries_lost_failed", cause=error)

    def blocked(self, *, on: bool) -> None:
        """Do nothing: this connection publishes nothing, and acks that the broker does not read yet are not lost."""

    def want(self, *, on: bool) -> None:
        """Begin or end consuming; several changes at once are one."""
        self._wanted = on and not self._stopping
        self._look_again()

    def may_begin(self, *, on: bool) -> None:
        """Begin to consume only while this is on; what has begun goes on."""
        self._may_begin = on
        self._look_again()

    def _look_again(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    def ack(self, delivery: Delivery) -> None:
        """Settle as done."""
        if delivery.generation == self.generation and self._settlements.ack(delivery.tag):
            asyncio.get_running_loop().call_soon(self.flush)

    def give_back(self, delivery: Delivery) -> None:
        """Settle as not done: it goes back to its place in the queue."""
        if delivery.generation == self.generation and self._settlements.give_back(delivery.tag):
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what was settled since the last time."""
        nacks, ack_to, acks = self._settlements.flush()
        if self._channel is None:
            return
        for tag in nacks:  # before any ack of several, which would take them along
            self._channel.nack(tag)
        if ack_to:
            self._channel.ack(ack_to, multiple=True)
        for tag in acks:
            self._channel.ack(tag, multiple=False)

    def _begin_large(self, generation: int) -> Callable[[int], LargeBody]:
        def begin(size: int) -> LargeBody:
            kept = self._channel is not None and generation == self.generation and self._events.keeps(size)
            return LargeBody(size, kept=kept)

        return begin

    def _on_delivery(  # noqa: PLR0913, PLR0917 - a delivery less its generation, as pika tells it
        self,
        tag: int,
        body: bytes | LargeBody,
        properties: bytes,
        redelivered: bool,  # noqa: FBT001
        exchange: str,
        routing_key: str,
    ) -> None:
        if self._channel is None:  # lost, and not closed yet: it comes again
            return
        self._settlements.delivered(tag)
        large, body = (body, b"") if isinstance(body, LargeBody) else (None, body)
        delivery = Delivery(self.generation, tag, body, properties, redelivered, exchange, routing_key, large)
        try:
            self._events.on_delivery(delivery)
        except Exception as error:  # noqa: BLE001 - it ends this message, not the connection
            self._limited.warning("event=delivery_failed tag=%d size=%d", delivery.tag, len(delivery.body), cause=error)
            asyncio.get_running_loop().call_later(RETRY_AFTER_A_BUG, self.give_back, delivery)
