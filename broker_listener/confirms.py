"""What is published on a confirmed channel and how the broker answered: each message's end is told exactly once.

The broker's answers are trusted as far as they go: what it says of a message that is not waited for changes nothing,
and a returned message that cannot be told from others makes all of them count as not taken. Confirms are numbers that
both sides count: a publish that fails half-way is the channel's end. A duplicate is possible, a loss is not.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Final, NamedTuple

from broker_listener.broker import Channel
from broker_listener.limited_log import LimitedLog
from broker_listener.link import Lost

LOG: Final = logging.getLogger(__name__)


class Outcome(Enum):
    """How a message that was published ended."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"
    """No queue was there to take it (basic.return)."""
    NACKED = "nacked"
    """The broker could not take it, as a full parked queue does."""
    LOST = "lost"
    """The channel ended before an answer: it may or may not have arrived."""


class Message(NamedTuple):
    """What is published; ``token`` is the caller's, ``target`` exchange and routing key."""

    token: int
    target: tuple[str, str]
    body: bytes
    properties: bytes


class Confirms:
    """Publishes on one channel at a time; ``tell(token, outcome)`` is never called from within ``publish``."""

    def __init__(self, tell: Callable[[int, Outcome], None]) -> None:
        self._tell = tell
        self._unconfirmed: dict[int, Message] = {}
        self._returned: set[int] = set()
        self._sequence = 0
        self._max_properties = 0
        self._channel: Channel | None = None
        self._limited = LimitedLog(LOG)

    def __len__(self) -> int:
        """Give how many messages have no answer."""
        return len(self._unconfirmed)

    @property
    def open(self) -> bool:
        """Whether there is a channel."""
        return self._channel is not None

    async def begin(self, channel: Channel, max_properties: int) -> None:
        """Ask for confirms on the channel and use it; raises Lost."""
        await channel.confirm(partial(self._on_confirmed, channel), partial(self._on_returned, channel))
        self._channel, self._sequence, self._max_properties = channel, 0, max_properties

    def lost(self) -> None:
        """Tell that every message without an answer is lost; the channel is gone."""
        self._channel = None
        self._tell_lost(self._take_unconfirmed())

    def publish(self, message: Message) -> None:
        """Publish as mandatory; LOST where there is no channel."""
        loop = asyncio.get_running_loop()
        if self._channel is None:
            loop.call_soon(self._tell, message.token, Outcome.LOST)
            return
        if len(message.properties) > self._max_properties:
            # They would end the connection (501 FRAME_ERROR) and with it everything that is unconfirmed.
            loop.call_soon(self._tell, message.token, Outcome.NACKED)
            return
        self._sequence += 1
        self._unconfirmed[self._sequence] = message
        try:
            self._channel.publish(*message.target, message.body, message.properties)
        except Lost:
            self._channel = None
            loop.call_soon(self._tell_lost, self._take_unconfirmed())

    def _take_unconfirmed(self) -> dict[int, Message]:
        unconfirmed, self._unconfirmed, self._returned = self._unconfirmed, {}, set()
        return unconfirmed

    def _tell_lost(self, unconfirmed: dict[int, Message]) -> None:
        for message in unconfirmed.values():
            self._tell(message.token, Outcome.LOST)

    def _on_confirmed(self, channel: Channel, sequence: int, multiple: bool, taken: bool) -> None:  # noqa: FBT001 - as on the wire
        if channel is not self._channel:
            return
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

    def _on_returned(self, channel: Channel, target: tuple[str, str], body: bytes, properties: bytes) -> None:
        """Mark the oldest equal message; its confirm follows (rabbitmq.com/docs/confirms#when-publishes-are-confirmed).

        The broker takes a BCC header off before it returns a message: then every message of that body is marked.
        """
        if channel is not self._channel:
            return
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
