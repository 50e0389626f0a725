"""KNIME Server's side of the broker: declares queue and exchange as it does, publishes jobs, collects results.

One thread, one connection without heartbeat, so a test may look away for as long as it likes. Needs pika, and nothing
else: the quickstart runs it with the distribution's.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions

from tests.lab.broker_node import JOBS_EXCHANGE, RESULTS_EXCHANGE

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parked:
    """A message of the parked queue."""

    body: bytes
    headers: Mapping[str, Any]


class SimulatedServer:
    """A connection to one vhost with the server's account."""

    def __init__(
        self,
        url: str,
        *,
        queue: str = "knime-jobs",
        exchange: str = JOBS_EXCHANGE,
        routing_key: str = "new-work",
        durable: bool = True,
    ) -> None:
        self.queue, self.exchange, self.routing_key, self.durable = queue, exchange, routing_key, durable
        self.queue_type = "classic"
        """What ``declare`` makes; a queue that is there with another type has to be deleted first."""
        self.published: dict[str, float] = {}
        """Unix time at which each job was published."""
        self._url = url
        self._unread: list[Report] = []
        self.connect()

    def connect(self) -> None:
        """Connect, declare and listen for results; after the broker was away, once more."""
        parameters = pika.URLParameters(self._url)
        parameters.heartbeat = 0
        self._connection = pika.BlockingConnection(parameters)
        self.channel = self._connection.channel()
        self.declare()
        self._reply_to = f"simulated-server-{uuid.uuid4()}"
        self.channel.exchange_declare(RESULTS_EXCHANGE, "direct", durable=True)
        self.channel.queue_declare(self._reply_to, exclusive=True)
        self.channel.queue_bind(self._reply_to, RESULTS_EXCHANGE, self._reply_to)
        self.channel.basic_consume(self._reply_to, self._on_result, auto_ack=True)

    def declare(self) -> None:
        """Declare queue and exchange as KNIME Server does: direct, durable since 4.13.3."""
        self.channel.exchange_declare(self.exchange, "direct", durable=self.durable)
        arguments = {} if self.queue_type == "classic" else {"x-queue-type": self.queue_type}
        self.channel.queue_declare(self.queue, durable=self.durable, arguments=arguments)
        self.channel.queue_bind(self.queue, self.exchange, self.routing_key)

    def publish(
        self,
        user: object,
        *,
        headers: Mapping[str, Any] | None = None,
        can_handle: bool | None = False,
        report: str = "",
        probe: tuple[str, ...] = (),
        seconds: float | None = None,
        **properties: Any,
    ) -> str:
        """Publish a job for a user; give its id. ``report="full"`` asks what the executor is and may do."""
        job = str(uuid.uuid4())
        body = {"user": user, "job": job, "workflow": "/demo/workflow", "report": report, "probe": list(probe)}
        if seconds is not None:
            body["seconds"] = seconds
        table = {**({} if can_handle is None else {"canHandle": can_handle}), **(headers or {})}
        given = {"reply_to": self._reply_to, "delivery_mode": 2, "content_type": "application/json", **properties}
        self.published[job] = time.time()
        self.publish_raw(json.dumps(body).encode(), pika.BasicProperties(headers=table, **given))
        return job

    def publish_raw(self, body: bytes, properties: pika.BasicProperties | None = None) -> None:
        """Publish anything where jobs are published."""
        self.channel.basic_publish(self.exchange, self.routing_key, body, properties)

    def results(self, count: int = 1, seconds: float = 40.0) -> list[Report]:
        """Give the next results, in the order of their arrival.

        Raises:
            TimeoutError: there were fewer within that time.
        """
        deadline = time.monotonic() + seconds
        while len(self._unread) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self._unread)} of {count} results within {seconds} s")
            self._connection.process_data_events(time_limit=0.05)
        taken, self._unread = self._unread[:count], self._unread[count:]
        return taken

    def further_results(self, seconds: float) -> list[Report]:
        """Give what comes within that time, be it nothing."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._connection.process_data_events(time_limit=0.05)
        taken, self._unread = self._unread, []
        return taken

    def consumers(self) -> int:
        """Return how many consumers the jobs queue has."""
        channel = self._connection.channel()
        count: int = channel.queue_declare(self.queue, passive=True).method.consumer_count
        channel.close()
        return count

    def depth(self, queue: str | None = None) -> int:
        """Count the messages of a queue that no consumer holds."""
        channel = self._connection.channel()
        count: int = channel.queue_declare(queue or self.queue, passive=True).method.message_count
        channel.close()
        return count

    def parked(self, count: int, seconds: float = 40.0, queue: str = "knime-jobs.parked") -> list[Parked]:
        """Take that many messages off the parked queue.

        Raises:
            TimeoutError: there were fewer within that time.
        """
        deadline = time.monotonic() + seconds
        taken: list[Parked] = []
        while len(taken) < count:
            taken += self._taken(queue)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(taken)} of {count} parked messages within {seconds} s: {taken}")
            self._connection.sleep(0.02)
        return taken

    def close(self) -> None:
        """End the connection."""
        if self._connection.is_open:
            self._connection.close()

    def _on_result(self, _channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        self._unread.append(json.loads(body))

    def _taken(self, queue: str) -> list[Parked]:
        channel = self._connection.channel()
        try:
            method, properties, body = channel.basic_get(queue, auto_ack=True)
        except pika.exceptions.ChannelClosedByBroker:
            return []  # the listener has not declared it yet
        channel.close()
        return [] if method is None else [Parked(body, _headers(properties))]


def _headers(properties: Any) -> Mapping[str, Any]:
    """Give the headers also where the listener's adapter, in the same process, has pika keep properties as bytes."""
    return pika.BasicProperties().decode(b"".join(properties.encode())).headers or {}
