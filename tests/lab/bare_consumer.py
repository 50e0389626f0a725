"""What every consumer needs at least: pika alone, reading the jobs queue: others' delays are compared with it."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection


class BareConsumer:
    """A process that reads the jobs queue, keeps and settles nothing; ``seen`` tells of small bodies."""

    def __init__(self, url: str, prefetch: int = 20_000) -> None:
        context = multiprocessing.get_context("spawn")
        self.seen, told = context.Pipe(duplex=False)
        self._process = context.Process(target=_consume, args=(url, prefetch, told), daemon=True)

    def start(self) -> None:
        """Begin to consume, and wait until it does."""
        self._process.start()
        if self.seen.recv() != b"":
            raise RuntimeError("the queue was not empty")

    def pause(self) -> None:
        """Stop the process where it is."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it read."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it: what it read goes back to the queue."""
        self._process.kill()
        self._process.join()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.pid is not None:
            os.kill(self._process.pid, number)


def _consume(url: str, prefetch: int, told: Connection) -> None:
    def on_delivery(_channel: object, _method: object, _properties: object, body: bytes) -> None:
        if len(body) < 1024:
            told.send(body)

    def on_channel(channel: Any) -> None:
        def consume(_frame: object) -> None:
            channel.basic_consume("knime-jobs", on_delivery, callback=lambda _frame: told.send(b""))

        channel.basic_qos(prefetch_count=prefetch, callback=consume)

    parameters = pika.URLParameters(url)
    connection = AsyncioConnection(parameters, on_open_callback=lambda raw: raw.channel(on_open_callback=on_channel))
    connection.ioloop.run_forever()
