"""The record of how many messages commands took off the parked queue, which the listener compares with what is there.

It is a number of empty messages in a queue of ours: they are counted, never read. One is there before its message is
taken, so a command that is killed leaves too many, never too few: the listener then misses as many that vanish, and
never blames somebody for what a command did. They are written in batches, since each commit waits for the disk: one for
each message would make a drop forty times as slow.
"""

from typing import Final

from broker_listener.operator.parking.transactions import Commit, Transactions
from broker_listener.parked_names import THOUSAND
from broker_listener.properties import Properties

MAX_BATCH: Final = 128
PERSISTENT: Final = Properties({"delivery_mode": b"\x02"}, None).encode()


class Record:
    """The record, as one walk writes it. ``units`` and ``thousands`` are its queues; each call is given the channel."""

    def __init__(self, units: str, thousands: str) -> None:
        self._units, self._thousands = units, thousands
        self._batch = 1
        self._spare = 0
        """Messages that are recorded and were not taken yet."""

    def one_more(self, channel: Transactions) -> Commit:
        """Have one more recorded; no transaction may be open on the channel. Raises Refused."""
        end = Commit.DONE
        if not self._spare:
            for _ in range(self._batch):
                channel.publish("", self._units, b"", PERSISTENT)
            end = channel.commit()
            self._spare, self._batch = self._batch, min(2 * self._batch, MAX_BATCH)
        self._spare -= 1
        return end

    def one_less(self) -> None:
        """Take that the message of ``one_more`` was not taken."""
        self._spare += 1

    def close(self, channel: Transactions) -> None:
        """Take back what was not needed. Raises Refused."""
        for tag in _tags(channel, self._units, self._spare):
            channel.ack(tag)
        channel.commit()
        self._spare = 0

    def compact(self, channel: Transactions, count: int) -> None:
        """Have one message stand for each thousand of ``count``, all in one transaction each. Raises Refused."""
        for _ in range(count // THOUSAND):
            tags = _tags(channel, self._units, THOUSAND)
            if len(tags) < THOUSAND:
                return  # there are fewer after all: they are given back when the channel ends
            for tag in tags:
                channel.ack(tag)
            channel.publish("", self._thousands, b"", PERSISTENT)
            channel.commit()


def _tags(channel: Transactions, queue: str, count: int) -> list[int]:
    """Take at most so many messages; return their delivery tags."""
    taken = (channel.get(queue) for _ in range(count))
    return [message.tag for message in taken if message is not None]
