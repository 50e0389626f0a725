"""The parked queue for one command at a time, and the queues of ours beside it: a lock, and the marks of walk.py.

The lock is a queue that only one connection may have: the broker takes it back when the connection ends, however it
ends. It trusts the broker, and nothing that is in a message. It is imported after root was given up (unprivileged.py).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from broker_listener import parked_names
from broker_listener.config import BrokerConfig
from broker_listener.operator.broker import Refused, Session
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.parking.walk import Names, Walk

LOCK_PATIENCE: Final = 5.0
"""Seconds in which the broker has noticed that another command was killed."""
SETTLES = 0.2
"""Seconds in which queues on any node of the broker have back what that command had taken."""
CLASSIC: Final[dict[str, object]] = {"x-queue-type": "classic"}
PARKED: Final[dict[str, object]] = {"x-max-length-bytes": 2**30, "x-overflow": "reject-publish"}
"""As the listener declares it (parked_queue.py)."""


class ParkedQueue:
    """The queue, and what is beside it."""

    def __init__(self, session: Session, broker: BrokerConfig) -> None:
        name = broker.parked_queue
        target = broker.exchange, broker.routing_key if broker.exchange else broker.queue
        self.names = Names(
            name, parked_names.marks(name), parked_names.taken(name), parked_names.thousands(name), target
        )
        self._lock = parked_names.lock(name)
        self._session = session

    @contextmanager
    def walked(self, *, changing: bool) -> Iterator[Walk]:
        """Give a way through the queue, on which nobody else is; what is not settled on it is given back at its end.

        Raises:
            Stopped: another one is on it, there is no queue, or the broker refused something.
        """
        try:
            self._wait_for_lock()
            walk = self._walk(changing=changing)
            yield walk
            walk.close()
            if changing and not walk.marks_left:
                self._session.delete_queue(self.names.marks)
            self._session.delete_queue(self._lock)
        except Refused as error:
            outcome = Outcome.NOT_PERMITTED if error.code == _ACCESS_REFUSED else Outcome.UNREACHABLE
            hint = "rabbitmqctl set_permissions, README: Installing it; nothing is lost, what was taken is back"
            raise Stopped(outcome, f"the broker refused: {error}; {hint}") from None

    def _walk(self, *, changing: bool) -> Walk:
        state = self._session.queue(self.names.parked)
        if state is None:
            raise Stopped(Outcome.FINDING, f"there is no queue {self.names.parked}: the listener makes it")
        if changing:
            for queue in (self.names.marks, self.names.taken, self.names.thousands):
                self._session.declare_queue_as(queue, CLASSIC)
            marks = self._session.queue(self.names.marks)
        else:
            marks = self._session.queue(self.names.marks)
        counted = not self._is_classic()
        return Walk(self._session, self.names, (state.messages, marks.messages if marks else 0), counted=counted)

    def _is_classic(self) -> bool:
        """Say whether the queue, which is there, is one that counts no deliveries; a doubt is a no."""
        try:
            self._session.declare_queue_as(self.names.parked, {**PARKED, **CLASSIC})
        except Refused:
            return False
        return True

    def _wait_for_lock(self) -> None:
        deadline = time.monotonic() + LOCK_PATIENCE
        while not self._session.lock(self._lock):
            if time.monotonic() > deadline:
                why = f"another knime-peruser parked is at work on {self.names.parked}; try again when it has ended"
                raise Stopped(Outcome.FINDING, why)
            time.sleep(0.1)
        time.sleep(SETTLES)


_ACCESS_REFUSED: Final = 403
