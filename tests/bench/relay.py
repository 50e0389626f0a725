"""The least that any listener must do, with the library alone: consume, publish with confirms, then ack."""

import multiprocessing
import signal

import pika
from pika.adapters.select_connection import SelectConnection


class BareRelay:
    """A process that relays the jobs queue to a routing key; pipelined confirms, acks with ``multiple``."""

    def __init__(self, url: str, exchange: str, routing_key: str, prefetch: int = 20_000) -> None:
        self._process = multiprocessing.get_context("spawn").Process(
            target=_relay, args=(url, exchange, routing_key, prefetch), daemon=True
        )

    def start(self) -> None:
        """Begin to consume."""
        self._process.start()

    def stop(self) -> None:
        """End."""
        self._process.terminate()
        self._process.join()


def _relay(url: str, exchange: str, routing_key: str, prefetch: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tags: list[int] = []
    confirmed = 0

    def on_delivery(_channel, method, properties, body):
        tags.append(method.delivery_tag)
        publisher.basic_publish(exchange, routing_key, body, properties, mandatory=True)

    def on_confirm(frame):
        nonlocal confirmed
        confirmed = max(confirmed, frame.method.delivery_tag)
        consumer.basic_ack(tags[confirmed - 1], multiple=True)

    def on_publisher(channel):
        channel.confirm_delivery(on_confirm, callback=lambda _frame: connection.channel(on_open_callback=on_consumer))

    def on_consumer(channel):
        nonlocal consumer
        consumer = channel
        channel.basic_qos(prefetch_count=prefetch, callback=lambda _: channel.basic_consume("knime-jobs", on_delivery))

    def on_open(opened):
        nonlocal publisher
        publisher = opened.channel(on_open_callback=on_publisher)

    publisher = consumer = None
    connection = SelectConnection(pika.URLParameters(url), on_open_callback=on_open)
    connection.ioloop.start()
