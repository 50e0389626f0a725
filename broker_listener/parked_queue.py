"""The parked queue, which is ours: declared, declared again when it was deleted, and published to.

What goes to a queue through the default exchange, the jobs queue's own messages among it, has a channel of its own,
since a publish that the broker refuses (a right is missing) ends its channel: that must not be the end of the
hand-overs under way. A repair follows a message that was returned or lost and nothing else, and
who publishes pauses after each of those: that bounds them.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from broker_listener.broker import Connection
from broker_listener.confirms import Confirms, Message, Outcome
from broker_listener.large_body import LargeBody
from broker_listener.large_publisher import LargePublisher
from broker_listener.limited_log import LimitedLog
from broker_listener.link import Losable, Lost
from broker_listener.parked_count import ParkedCount

LOG: Final = logging.getLogger(__name__)
MAX_BYTES: Final = 2**30
"""``x-max-length-bytes`` of the queue."""


class ParkedQueue:
    """The queue and the channel to it, on the connection that there is."""

    def __init__(self, name: str, urls: Sequence[str], tell: Callable[[int, Outcome], None]) -> None:
        self._name = name
        self._tell = tell
        self._confirms = Confirms(self._told)
        self._count = ParkedCount(name, urls)
        self._large = LargePublisher(self._told)
        self._connection: Connection | None = None
        self._repair: asyncio.Task[None] | None = None
        self._reason = ""
        self._proof: asyncio.Future[None] | None = None
        self._limited = LimitedLog(LOG)

    def __len__(self) -> int:
        """Give how many messages have no answer."""
        return len(self._confirms) + len(self._large)

    async def begin(self, connection: Connection) -> None:
        """Declare the queue and open the channel; where neither can be had, hand-overs go on."""
        self._connection = connection
        self._large.begin(connection)
        await self._repaired(connection)
        self._count.begin(connection)

    async def prove(self, connection: Connection) -> None:
        """Return when the broker has answered a message to no queue: under an alarm it reads none, and says so late.

        A channel that ends for it proves as much, the broker reads. Raises Lost.
        """
        self._proof = connection.future()
        self._confirms.publish(Message(_PROOF, ("", _NO_QUEUE), b"", b"\0\0"))
        await self._proof

    def lost(self) -> None:
        """Tell that every message without an answer is lost; the connection is gone."""
        self._connection = None
        self._count.lost()
        if self._repair is not None:
            self._repair.cancel()
        self._confirms.lost()
        self._large.lost()

    def publish(self, token: int, body: bytes, properties: bytes) -> None:
        """Publish to the parked queue, through the default exchange."""
        self._count.published(token)
        self.publish_to(self._name, token, body, properties)

    def publish_to(self, queue: str, token: int, body: bytes, properties: bytes) -> None:
        """Publish to a queue through the default exchange; what goes to another than the parked one is not parked."""
        if not self._confirms.open:
            self._limited.warning("event=parking_channel_lost reason=%s", self._reason)
            self._begin_repair()
        self._confirms.publish(Message(token, ("", queue), body, properties))

    def publish_large(self, token: int, body: LargeBody, properties: bytes, queue: str = "") -> None:
        """Publish a large message to the queue, or to another one, through the default exchange."""
        if not queue:
            self._count.published(token)
        self._large.publish(token, ("", queue or self._name), body, properties)

    def _told(self, token: int, outcome: Outcome) -> None:
        if token == _PROOF:
            if self._proof is not None and not self._proof.done():
                self._proof.set_result(None)
            return
        self._count.answered(token, confirmed=outcome is Outcome.CONFIRMED)
        if outcome is Outcome.RETURNED:
            self._begin_repair()
        self._tell(token, outcome)

    def _begin_repair(self) -> None:
        if self._connection is not None and (self._repair is None or self._repair.done()):
            self._repair = asyncio.get_running_loop().create_task(self._repaired(self._connection))

    async def _repaired(self, connection: Connection) -> None:
        try:
            await self._declare(connection)
            if not self._confirms.open:
                await self._open(connection)
        except Lost:
            return  # the connection's end, which others see to; or this channel's, and the next message brings it back

    async def _declare(self, connection: Connection) -> None:
        fault = await connection.declare_queue(
            self._name, {"x-max-length-bytes": MAX_BYTES, "x-overflow": "reject-publish"}
        )
        if fault is not None:
            self._limited.warning("event=parked_queue_not_declared queue=%s reason=%s", self._name, fault)

    async def _open(self, connection: Connection) -> None:
        channel = await connection.open_channel(Losable(self._on_channel_lost))
        await self._confirms.begin(channel, connection.max_properties)

    def _on_channel_lost(self, reason: str) -> None:
        self._reason = reason
        self._confirms.lost()


_PROOF: Final = -1
"""The token of a message of this file's own; others count up from 0."""
_NO_QUEUE: Final = "knime-peruser.no-queue"
"""A name in our own name space that no queue has."""
