"""The operator's connection to the broker: blocking, one step at a time. Of this program only this file imports pika.

Properties are the raw bytes that came, as everywhere (broker_listener/properties.py). A publish is mandatory and
confirmed: it raises, or the broker has it. What the broker refuses ends a channel, and with it every delivery that
was taken and not settled goes back to its queue; the next question opens a new channel. No exception of pika's
leaves this file. It is imported after root was given up (unprivileged.py), never before.
"""

import logging
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import pika
from pika import spec
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

from broker_listener.config import BrokerConfig, BrokerUrl, parse_url, tls_context
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.properties import RawProperties
from broker_listener.secret_text import doubt
from broker_listener.strict_x509 import cure

TIMEOUT: Final = 10.0
MAX_BLOCKED: Final = 60.0
"""Seconds that the broker may read nothing, in an alarm, before a command gives up."""
PREFETCH: Final = 200

logging.getLogger("pika").setLevel(logging.CRITICAL + 1)  # what it logs may hold what a message holds


class CannotConnect(Exception):
    """No connection; the text says why, without the password."""


class Refused(Exception):
    """The broker said no to a question; ``code`` is AMQP's (403 no right, 404 not there, 406 something else there)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


class NotTaken(Exception):
    """The broker does not have the message: no queue is bound there, or a queue is full and refuses."""


class _RawProperties(RawProperties, spec.BasicProperties):  # type: ignore[misc]  # pika has no types
    """The raw bytes, as a class that pika's blocking connection takes for properties where it asserts that."""


@dataclass(frozen=True, slots=True)
class Message:
    """A delivery that is not settled yet; ``properties`` are raw. ``remaining`` is what the queue held after it."""

    tag: int
    body: bytes
    properties: bytes
    redelivered: bool
    exchange: str
    routing_key: str
    remaining: int


@dataclass(frozen=True, slots=True)
class QueueState:
    """What anybody may ask of a queue."""

    messages: int
    consumers: int


class Session:
    """An open connection, and a channel that is opened when it is needed."""

    def __init__(self, raw: Any, url: BrokerUrl, account: str) -> None:
        self._raw = raw
        self._channel: Any = None
        self.account = account
        self.server = f"{url.host}:{url.port}"
        self.product = _server_properties(raw)
        self.max_properties = raw._impl.params.frame_max - 8 - 12  # noqa: SLF001 - as negotiated; AMQP 0-9-1 4.2.6.1

    def queue(self, name: str) -> QueueState | None:
        """Give a queue's state, None where there is none; raises Refused where it may not be asked."""
        with self._asking() as channel:
            try:
                answer = channel.queue_declare(name, passive=True).method
            except ChannelClosedByBroker as error:
                _must_be_not_found(error)
                return None
            return QueueState(answer.message_count, answer.consumer_count)

    def has_exchange(self, name: str) -> bool:
        """Say whether the exchange is there; raises Refused."""
        with self._asking() as channel:
            try:
                channel.exchange_declare(name, passive=True)
            except ChannelClosedByBroker as error:
                _must_be_not_found(error)
                return False
            return True

    def declare_exchange_as(self, name: str, kind: str, *, durable: bool) -> None:
        """Ask whether an exchange that is there has this type and durability; raises Refused, 406 where not."""
        with self._asking() as channel:
            channel.exchange_declare(name, kind, durable=durable)

    def declare_queue_as(self, name: str, arguments: dict[str, object]) -> None:
        """Ask whether a durable queue that is there has these arguments; raises Refused, 406 where not."""
        with self._asking() as channel:
            channel.queue_declare(name, durable=True, arguments=arguments)

    def may_consume(self, queue: str) -> bool:
        """Say whether this account may read the queue. Nothing is taken: the question holds a fault that comes after.

        RabbitMQ looks at rights before arguments (rabbit_channel.erl, basic.consume), so 406 means that it may.
        """
        with self._asking() as channel:
            try:
                consumer = channel.basic_consume(queue, _ignore, arguments={"x-priority": "no number"})
            except ChannelClosedByBroker as error:
                return _permitted(error)
            channel.basic_cancel(consumer)
            return True

    def may_publish(self, exchange: str) -> bool:
        """Say whether this account may write to the exchange. Nothing is published, by the same trick.

        An expiration that is no number is refused after the rights were looked at (rabbit_channel.erl, basic.publish).
        """
        with self._asking() as channel:
            try:
                channel.basic_publish(exchange, "knime-peruser.check", b"", _RawProperties(_BAD_EXPIRATION), True)
            except ChannelClosedByBroker as error:
                return _permitted(error)
            return True

    def get(self, queue: str) -> Message | None:
        """Take a message without settling it, None where the queue is empty; raises Refused."""
        with self._asking() as channel:
            return taken_from(channel, queue)

    def publish(self, exchange: str, routing_key: str, body: bytes, properties: bytes) -> None:
        """Publish, and come back when the broker has it.

        Raises:
            NotTaken: it has not, and the message is nowhere.
            Refused: no right, or no such exchange: what was taken and not settled went back to its queue.
        """
        with self._asking() as channel:
            try:
                channel.basic_publish(exchange, routing_key, body, _RawProperties(properties), True)
            except UnroutableError:
                where = f"exchange {exchange!r} has no queue for {routing_key!r}"
                raise NotTaken(where if exchange else f"there is no queue {routing_key!r}") from None
            except NackError:
                raise NotTaken("the broker did not accept it: is a queue full?") from None

    def ack(self, tag: int) -> None:
        """Settle a delivery: it is gone from its queue."""
        with self._asking() as channel:
            channel.basic_ack(tag)

    def give_back(self, tag: int) -> None:
        """Give a delivery back to its queue."""
        with self._asking() as channel:
            channel.basic_nack(tag, requeue=True)

    def tap(self, exchange: str, routing_key: str) -> str:
        """Make a private queue that gets a copy of what is published there; it ends with this connection.

        It is bounded in the broker, where the oldest copy goes first: a tap holds nothing back. Raises Refused.
        """
        name = f"knime-peruser.observe.{random.getrandbits(64):016x}"
        arguments = {"x-max-length": 10_000, "x-max-length-bytes": 2**26}
        with self._asking() as channel:
            channel.queue_declare(name, exclusive=True, auto_delete=True, arguments=arguments)
            channel.queue_bind(name, exchange, routing_key)
        return name

    def deliveries(self, queue: str, seconds: float) -> Iterator[Message | None]:
        """Give what arrives within that time, settled as it is given; None now and then, where nothing does."""
        deadline = monotonic() + seconds
        with self._asking() as channel:
            channel.basic_qos(prefetch_count=PREFETCH)
            for method, properties, body in channel.consume(queue, exclusive=True, inactivity_timeout=0.1):
                if method is None:
                    yield None
                else:
                    channel.basic_ack(method.delivery_tag)
                    place = _text(method.exchange), _text(method.routing_key)
                    yield Message(method.delivery_tag, body, properties.raw, method.redelivered, *place, 0)
                if monotonic() >= deadline:
                    break
            channel.cancel()

    def lock(self, name: str) -> bool:
        """Have a queue that no other connection may have at the same time; say whether it could be had.

        The broker takes it back when this connection ends, however it ends. Raises Refused.
        """
        with self._asking() as channel:
            try:
                channel.queue_declare(name, exclusive=True)
            except ChannelClosedByBroker as error:
                if error.reply_code != _RESOURCE_LOCKED:
                    raise
                return False
            return True

    def delete_queue(self, name: str) -> None:
        """Delete a queue, whatever is in it; raises Refused."""
        with self._asking() as channel:
            channel.queue_delete(name)

    def open_transactions(self, returned: Callable[[], None]) -> Any:
        """Open another channel, in transaction mode; ``returned`` is called of each message that no queue took."""
        with self.translated():
            channel = self._raw.channel()
            channel.add_on_return_callback(lambda *_: returned())
            channel.tx_select()
            return channel

    def commit(self, channel: Any) -> None:
        """Commit what was published and acked on a channel of ``open_transactions``; tell what was returned.

        RabbitMQ answers when it has taken responsibility for all of it (rabbitmq.com/docs/semantics). Raises Refused,
        406 where a queue refuses a message: what was acked together with it is gone all the same.
        """
        with self.translated():
            channel.tx_commit()
            self._raw.process_data_events(0)

    def close(self) -> None:
        """End the connection; what was not settled goes back to its queue."""
        with suppress(AMQPError):
            if self._raw.is_open:
                self._raw.close()

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """Give an open channel; what pika raises on it is translated."""
        with self.translated():
            if self._channel is None or not self._channel.is_open:
                self._channel = self._raw.channel()
                self._channel.confirm_delivery()
            yield self._channel

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what pika raises into Refused, or into Stopped where the connection is gone."""
        try:
            yield
        except ChannelClosedByBroker as error:
            raise Refused(error.reply_code, cut(error.reply_text)) from None
        except AMQPError as error:
            raise Stopped(Outcome.UNREACHABLE, f"lost the broker at {self.server}: {reason(error)}") from None


def taken_from(channel: Any, queue: str) -> Message | None:
    """Take a message on this channel without settling it, None where the queue is empty."""
    method, properties, body = channel.basic_get(queue)
    if method is None:
        return None
    place = _text(method.exchange), _text(method.routing_key)
    return Message(method.delivery_tag, body, properties.raw, method.redelivered, *place, method.message_count)


def raw_properties(properties: bytes) -> Any:
    """Give property bytes as pika takes them where it publishes."""
    return _RawProperties(properties)


@contextmanager
def session(config: BrokerConfig, password: str, account: str = "") -> Iterator[Session]:
    """Connect to one of ``broker.urls``, in random order, the next where one fails.

    Raises:
        Stopped: none of them can be had.
    """
    failed = []
    urls = [parse_url(url) for url in config.urls]
    for url in random.sample(urls, len(urls)):
        try:
            connected = connect(config, url, account or url.user, password)
        except CannotConnect as error:
            failed.append(f"{url.host}:{url.port}: {error}")
            continue
        try:
            yield connected
            return
        finally:
            connected.close()
    raise Stopped(Outcome.UNREACHABLE, f"cannot connect to the broker: {'; '.join(failed)}")


def connect(config: BrokerConfig, url: BrokerUrl, account: str, password: str) -> Session:
    """Connect to one URL as an account.

    Raises:
        CannotConnect: saying why.
    """
    spec.props[spec.BasicProperties.INDEX] = _RawProperties
    try:
        tls = pika.SSLOptions(tls_context(config), url.host) if url.tls else None
        parameters = pika.ConnectionParameters(
            host=url.host,
            port=url.port,
            virtual_host=url.vhost,
            credentials=pika.PlainCredentials(account, password, erase_on_connect=True),
            ssl_options=tls,
            frame_max=131072,
            heartbeat=0,  # a person thinks at a prompt; what a dead network leaves, TCP notices
            tcp_options={"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3},
            blocked_connection_timeout=MAX_BLOCKED,
            socket_timeout=TIMEOUT,
            stack_timeout=TIMEOUT,
            client_properties={"connection_name": f"knime-peruser {socket.gethostname()} operator"},
        )
        return Session(pika.BlockingConnection(parameters), url, account)
    except (AMQPError, OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = reason(error)
        hint = f"; the password {said}" if "ACCESS_REFUSED" in why and (said := doubt(password)) else ""
        raise CannotConnect(f"{why}{hint}") from None


def reason(error: object) -> str:
    """Say what is behind an exception of pika's, which wraps causes in several ways."""
    for _ in range(8):
        nested = getattr(error, "exceptions", None) or [getattr(error, "exception", None)]
        arguments = getattr(error, "args", ())
        if isinstance(nested[-1], BaseException):
            error = nested[-1]
        elif arguments and isinstance(arguments[0], BaseException):
            error = arguments[0]
    code, text = getattr(error, "reply_code", None), getattr(error, "reply_text", None)
    said = cut(f"{code} {text}" if code is not None else f"{type(error).__name__}: {error}")
    return f"{said}; {advice}" if (advice := cure(error)) else said


def cut(text: str) -> str:
    """Give what the broker said as short ASCII."""
    return text[:300].encode("ascii", "backslashreplace").decode()


def _must_be_not_found(error: ChannelClosedByBroker) -> None:
    if error.reply_code != _NOT_FOUND:
        raise error


def _permitted(error: ChannelClosedByBroker) -> bool:
    if error.reply_code == _PRECONDITION_FAILED:
        return True
    if error.reply_code == _ACCESS_REFUSED:
        return False
    raise error


def _server_properties(raw: Any) -> str:
    properties = raw._impl.server_properties or {}  # noqa: SLF001 - pika has no other way to tell them
    return cut(f"{properties.get('product', 'an AMQP broker')} {properties.get('version', '')}".strip())


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def _ignore(*_: object) -> None:
    """Take a delivery that never comes."""


_ACCESS_REFUSED: Final = 403
_NOT_FOUND: Final = 404
_RESOURCE_LOCKED: Final = 405
_PRECONDITION_FAILED: Final = 406
_BAD_EXPIRATION: Final = b"\x01\x00\x01x"
"""Basic properties with nothing but an expiration, which is no number."""
