"""N executors on one queue, in one process: a connection, a channel with a prefetch of one and a consumer for each.

``simulated_knime/light.py`` is one process an executor; 300 of them on two cores would measure the scheduler. Here each
consumer takes its own user's jobs and puts every other job back, by publishing it again, as the predecessor's did.

How it could lie: one process does one thing at a time, while real executors put jobs back at once. Therefore the jobs
come slowly, so that a job rarely waits for another one's hop, and ``share`` tells how busy the process was: a figure
taken near 100 % would be this process's own. A hop here costs what Python and pika take, 0.2 to 0.4 ms, and a real
executor's is not known. With and without a listener it is the same process.
"""

import json
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import pika

from tests.bench.open_loop import note
from tests.lab.broker_node import JOBS_EXCHANGE
from tests.lab.processes import cpu_seconds


class ManyExecutors:
    """The process. ``arrived``: when each job came to its own user's executor; ``hops``: how often one was put back."""

    def __init__(self, url: str, users: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_run, args=(url, tuple(users), other), daemon=True)
        self._process.start()
        other.close()
        if not self._pipe.poll(60.0):
            raise TimeoutError("the executors did not consume within 60 s")
        self._pipe.recv()
        self.arrived: dict[str, float] = {}
        self.hops = 0

    def turn(self) -> None:
        """Take in what they tell, for at most 0.05 s."""
        if self._pipe.poll(0.05):
            job, at, self.hops = self._pipe.recv()
            note(self.arrived, job, at)

    def forget(self) -> int:
        """Forget what arrived; return the hops so far."""
        self.arrived.clear()
        return self.hops

    def cpu_seconds(self) -> float:
        """Return the processor time of the process."""
        return cpu_seconds(self._process.pid or 0)

    def end(self) -> None:
        """End them all."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _run(url: str, users: tuple[str, ...], pipe: Connection) -> None:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    hops = 0

    def consume(user: str) -> None:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume("knime-jobs", lambda *delivery: took(user, *delivery))

    def took(user: str, channel: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        nonlocal hops
        job = json.loads(body)
        if job["user"] == user:
            pipe.send((job["job"], time.monotonic(), hops))
        else:
            hops += 1
            again = pika.BasicProperties(headers={"canHandle": False}, delivery_mode=properties.delivery_mode)
            channel.basic_publish(JOBS_EXCHANGE, "new-work", body, again)
        channel.basic_ack(method.delivery_tag)

    for user in users:
        consume(user)
    pipe.send(True)
    while True:
        connection.process_data_events(time_limit=1.0)
