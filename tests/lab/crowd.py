"""Executors of other users, as many as wanted in one process: each consumes the shared queue and puts every job back.

One connection, a channel for each of them; in whichever manner is not known of the real ones.
"""

import threading
from typing import Any, Literal

import pika
from pika.spec import BasicProperties

from tests.lab.broker_node import JOBS_EXCHANGE

PutBack = Literal["nack", "false", "true"]
"""By basic.nack with requeue; or republished, with ``canHandle`` set to that."""


class Crowd(threading.Thread):
    """So many executors of others; ``returned`` is how often they put a job back."""

    def __init__(self, url: str, size: int, put_back: PutBack) -> None:
        super().__init__(daemon=True)
        self._put_back = put_back
        self._ended = False
        self.returned = 0
        parameters = pika.URLParameters(url)
        parameters.heartbeat = 0
        self._connection = pika.BlockingConnection(parameters)
        for _ in range(size):
            channel = self._connection.channel()
            channel.basic_qos(prefetch_count=1)
            channel.basic_consume("knime-jobs", self._on_delivery)

    def run(self) -> None:
        """Serve until ``end``."""
        with self._connection:
            while self._connection.is_open and not self._ended:
                self._connection.process_data_events(time_limit=0.1)

    def end(self) -> None:
        """End them all."""
        self._ended = True
        self.join()

    def _on_delivery(self, channel: Any, method: Any, _properties: BasicProperties, body: bytes) -> None:
        self.returned += 1
        if self._put_back == "nack":
            channel.basic_nack(method.delivery_tag, requeue=True)
            return
        # Every job of these tests has that one header: what is decoded here may be made anew.
        again = BasicProperties(headers={"canHandle": self._put_back == "true"}, delivery_mode=2)
        channel.basic_publish(JOBS_EXCHANGE, "new-work", body, again)
        channel.basic_ack(method.delivery_tag)
