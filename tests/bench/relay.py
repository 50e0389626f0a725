"""The bare relay: the least that any listener must do, with pika alone, in one process.

One definition, for every bench that needs a control: consume; publish each body with its properties, mandatory, on a
second channel with pipelined confirms; ack by ``multiple`` what the broker has confirmed without a gap. It decodes no
body, knows no user, and bounds nothing but by the prefetch.

How it could lie: a relay that acks before the confirm would be faster and lose jobs, so a confirm that came ahead of an
earlier one's is kept until that one is there, and a nack or a returned message ends the process, which its bench sees
as jobs that never arrive. One that decodes properties does more than needed: pika does so, and the bare library is what
is compared with.
"""

import multiprocessing
import os
import signal
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

import pika
from pika.adapters.select_connection import SelectConnection

from tests.lab.broker_node import JOBS_EXCHANGE
from tests.lab.processes import wait_for
from tests.simulated_knime.server import SimulatedServer


@dataclass(frozen=True, slots=True)
class Route:
    """From where to where; a body of more than ``largest`` bytes is acked and goes nowhere (a bare consumer)."""

    url: str
    routing_key: str
    prefetch: int = 20_000
    largest: int = sys.maxsize
    queue: str = "knime-jobs"
    exchange: str = JOBS_EXCHANGE


class BareRelay:
    """A process that relays; started with ``start``, it consumes until ``stop``."""

    def __init__(self, route: Route) -> None:
        self._route = route
        # Passed through a pipe: the URL holds a password, which is on no command line.
        self._process = multiprocessing.get_context("spawn").Process(target=_run, args=(route,), daemon=True)

    @property
    def pid(self) -> int:
        """The process."""
        if self._process.pid is None:
            raise RuntimeError("the relay was not started")
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.exitcode

    def start(self, server: SimulatedServer) -> None:
        """Begin to consume, and wait until the broker knows the consumer."""
        self._process.start()
        declared = server.channel.queue_declare
        wait_for(lambda: declared(self._route.queue, passive=True).method.consumer_count > 0, 20, "the bare relay")

    def stop(self) -> None:
        """End, also while it stands still."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()


def _run(route: Route) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Relay(route)


class Confirmed:
    """Deliveries in the order of their publishes, and which of them are confirmed without a gap."""

    def __init__(self) -> None:
        self._tags: deque[int] = deque()
        """Delivery tags; the first one's publish has the number ``_first``."""
        self._first = 1
        self._ahead: set[int] = set()

    def published(self, tag: int) -> None:
        """Note the delivery tag of the next publish."""
        self._tags.append(tag)

    def confirmed(self, number: int, *, multiple: bool) -> int | None:
        """Note a confirm; return the delivery tag up to which all may be acked now, None if there is nothing new."""
        self._ahead.update(range(self._first, number + 1) if multiple else (number,))
        tag = None
        while self._first in self._ahead:
            self._ahead.remove(self._first)
            self._first += 1
            tag = self._tags.popleft()
        return tag


class _Relay:
    """The connection with its two channels."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._confirmed = Confirmed()
        self._connection = SelectConnection(pika.URLParameters(route.url), on_open_callback=self._on_open)
        self._connection.ioloop.start()

    def _on_open(self, connection: Any) -> None:
        self._publisher = connection.channel(on_open_callback=self._on_publisher)

    def _on_publisher(self, channel: Any) -> None:
        channel.add_on_return_callback(lambda *_: os._exit(1))
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._open_consumer())

    def _open_consumer(self) -> None:
        self._consumer = self._connection.channel(on_open_callback=self._on_consumer)

    def _on_consumer(self, channel: Any) -> None:
        channel.basic_qos(
            prefetch_count=self._route.prefetch,
            callback=lambda _frame: channel.basic_consume(self._route.queue, self._on_delivery),
        )

    def _on_delivery(self, channel: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if len(body) > self._route.largest:
            channel.basic_ack(method.delivery_tag)
            return
        self._confirmed.published(method.delivery_tag)
        self._publisher.basic_publish(self._route.exchange, self._route.routing_key, body, properties, mandatory=True)

    def _on_confirm(self, frame: Any) -> None:
        if not isinstance(frame.method, pika.spec.Basic.Ack):
            os._exit(1)
        tag = self._confirmed.confirmed(frame.method.delivery_tag, multiple=frame.method.multiple)
        if tag is not None:
            self._consumer.basic_ack(tag, multiple=True)
