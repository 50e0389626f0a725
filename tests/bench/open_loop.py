"""An open loop: jobs that are published when they are due, whatever becomes of those before them.

How a latency could lie: a publisher that waits for an answer before it sends the next job stops to ask just when the
answer is slow (coordinated omission), and a publisher that is late itself makes the rest look quick. So each job has a
time at which it is due, set before the run; its latency is counted from then, a late send included, and how late the
publisher was is a figure of its own. Publisher and receiver are two processes that share the monotonic clock, so that
neither waits for the other. Every job must arrive once.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pika

from tests.bench.instruments import HasServer
from tests.bench.spread import median, percentile
from tests.lab.broker_node import JOBS_EXCHANGE

_UNTIL_THE_FIRST = 0.3
"""Seconds from the order to begin until the first job is due."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Jobs for these users by turns, ``rate`` a second. ``name`` begins the jobs' names, so that streams differ."""

    name: str
    users: Sequence[str]
    rate: float
    count: int
    routing_key: str = "new-work"


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds of each job from the time at which it was due; ``late``: until its send."""

    received: tuple[float, ...]
    late: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return median(self.received)

    @property
    def p99(self) -> float:
        """The 99th percentile; of fewer than 100 jobs the largest."""
        return percentile(self.received, 99)


class Overdue(TimeoutError):
    """Not all jobs arrived in time; the oldest of those that did not was due ``seconds`` ago."""

    def __init__(self, arrived: int, count: int, seconds: float) -> None:
        super().__init__(f"{arrived} of {count} jobs arrived, the oldest of the others was due {seconds:.1f} s ago")
        self.seconds = seconds


class Publisher:
    """A process that publishes a stream with KNIME Server's account; ``begin`` sets when the first job is due."""

    def __init__(self, url: str, stream: Stream) -> None:
        context = multiprocessing.get_context("spawn")
        self._stream = stream
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_publish, args=(url, stream, other), daemon=True)
        self._process.start()
        other.close()
        self._said(30.0)  # it is connected
        self.first = 0.0

    def begin(self) -> None:
        """Let it publish."""
        self.first = time.monotonic() + _UNTIL_THE_FIRST
        self._pipe.send(self.first)

    def due(self, number: int) -> float:
        """Return when a job is due: time.monotonic()."""
        return self.first + number / self._stream.rate

    def lateness(self) -> list[float]:
        """Wait for its end; return the seconds that each job was sent later than it was due."""
        late: list[float] = self._said(self._stream.count / self._stream.rate + 60)
        self._process.join()
        return late

    def end(self) -> None:
        """End it, wherever it is."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _said(self, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"the publisher said nothing within {seconds} s")
        return self._pipe.recv()


def through_queue(site: HasServer, url: str, stream: Stream, wait: float = 30.0) -> Latencies:
    """Publish a stream and receive it from the queue ``done``, however it got there."""
    channel = site.server.channel
    arrived: dict[str, float] = {}

    def received(_channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        note(arrived, json.loads(body)["job"], time.monotonic())

    tag = channel.basic_consume("done", received, auto_ack=True)
    try:
        return measured(url, stream, arrived, lambda: channel.connection.process_data_events(time_limit=0.05), wait)
    finally:
        channel.basic_cancel(tag)


def measured(
    url: str, stream: Stream, arrived: dict[str, float], turn: Callable[[], object], wait: float = 30.0
) -> Latencies:
    """Publish a stream; call ``turn``, which adds what arrived and when, until all has arrived.

    Raises:
        Overdue: a job did not, ``wait`` seconds after the last one was due.
    """
    publisher = Publisher(url, stream)
    try:
        publisher.begin()
        names = [f"{stream.name}-{number}" for number in range(stream.count)]
        until = publisher.due(stream.count) + wait
        while len(arrived) < stream.count:
            if time.monotonic() > until:
                oldest = next(number for number, name in enumerate(names) if name not in arrived)
                raise Overdue(len(arrived), stream.count, time.monotonic() - publisher.due(oldest))
            turn()
        late = publisher.lateness()
    finally:
        publisher.end()
    took = tuple(1000 * (arrived[name] - publisher.due(number)) for number, name in enumerate(names))
    return Latencies(took, tuple(1000 * seconds for seconds in late))


def note(arrived: dict[str, float], job: str, at: float) -> None:
    """Note a job's arrival; raises RuntimeError where it had arrived before."""
    if job in arrived:
        raise RuntimeError(f"job {job} arrived twice")
    arrived[job] = at


def _publish(url: str, stream: Stream, pipe: Connection) -> None:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    properties = pika.BasicProperties(headers={"canHandle": False}, delivery_mode=2)
    users, late = stream.users, []
    pipe.send(True)
    first = pipe.recv()
    for number in range(stream.count):
        body = json.dumps({"user": users[number % len(users)], "job": f"{stream.name}-{number}"}).encode()
        due = first + number / stream.rate
        while (left := due - time.monotonic()) > 0:
            time.sleep(left)
        channel.basic_publish(JOBS_EXCHANGE, stream.routing_key, body, properties)
        late.append(time.monotonic() - due)
    pipe.send(late)
    connection.close()
