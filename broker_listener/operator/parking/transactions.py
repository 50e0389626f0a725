"""A channel on which what is published happens together with the rest of its transaction, or not at all.

RabbitMQ keeps what is published and acked in the channel until ``tx.commit`` arrives: a client that ends before that,
however it ends, has changed nothing, and one that ends after it has changed all of it. That much is certain. It is no
transaction of a database (rabbitmq.com/docs/semantics, seen on 3.10 and 4.0): a message that no queue takes, or that a
full queue refuses, does not keep the rest from happening. So whoever must not lose a message never acks it in the
transaction that publishes its copy. It is imported after root was given up (unprivileged.py), never before.
"""

from enum import Enum
from typing import Any

from broker_listener.operator.broker import Message, Refused, Session, raw_properties, taken_from


class Commit(Enum):
    """What became of a transaction."""

    DONE = "done"
    RETURNED = "no queue is bound there"
    """Of a message that was published; the rest of the transaction happened."""
    REFUSED = "the broker did not accept it: is a queue full?"
    """Likewise; and the channel is gone: what was taken went back to its queue."""


class Transactions:
    """The channel; what is taken on it is unsettled until its ack is committed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._returned = False
        self._channel: Any = session.open_transactions(self._on_returned)

    def get(self, queue: str) -> Message | None:
        """Take a message, None where the queue is empty; raises Refused."""
        with self._session.translated():
            return taken_from(self._channel, queue)

    def publish(self, exchange: str, routing_key: str, body: bytes, properties: bytes) -> None:
        """Publish at the next commit, mandatory."""
        with self._session.translated():
            self._channel.basic_publish(exchange, routing_key, body, raw_properties(properties), mandatory=True)

    def ack(self, tag: int) -> None:
        """Settle a delivery at the next commit: it is gone from its queue."""
        with self._session.translated():
            self._channel.basic_ack(tag)

    def commit(self) -> Commit:
        """Have all of it happen; come back when the broker answers for it. Raises Refused, but for 406."""
        self._returned = False
        try:
            self._session.commit(self._channel)
        except Refused as error:
            if error.code != _PRECONDITION_FAILED:
                raise
            return Commit.REFUSED
        return Commit.RETURNED if self._returned else Commit.DONE

    def close(self) -> None:
        """End the channel: what is not settled goes back to its queue.

        A classic queue puts it to its place. A quorum queue delivers it next, and in disorder where it gets back more
        than 32 at once (seen on 3.10).
        """
        with self._session.translated():
            if self._channel.is_open:
                self._channel.close()

    def _on_returned(self) -> None:
        self._returned = True


_PRECONDITION_FAILED = 406
