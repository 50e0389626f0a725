"""Connections and channels of the broker: all of pika but its internals, which are in ``pika_seam``.

What ends a channel ends its connection, unless the channel stands for itself, and says why. No exception of pika leaves
this file, no property is decoded, and no password is kept: it is read at each connect and given to pika alone.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pika
from pika import spec
from pika.exceptions import AMQPError

from broker_listener.config import BrokerConfig, BrokerUrl, NoPassword, read_password, tls_context
from broker_listener.large_body import LargeBody
from broker_listener.link import Losable, Lost, Role
from broker_listener.pika_seam import BeginLarge, SteadyConnection, forget_cancelled
from broker_listener.properties import RawProperties
from broker_listener.secret_text import doubt
from broker_listener.strict_x509 import cure

FRAME_MAX: Final = 131072
HEARTBEAT: Final = 30
CONNECT_TIMEOUT: Final = 10.0
CLOSE_TIMEOUT: Final = 0.5
MAX_OWN_BODY: Final = 65536
"""Bytes of what listeners tell each other (``host_messages``); ``max_body`` is of jobs."""

spec.props[spec.BasicProperties.INDEX] = RawProperties
# What pika logs may hold what a message holds, over several lines; what matters of it is logged here.
logging.getLogger("pika").setLevel(logging.CRITICAL + 1)


class Channel:
    """A channel of pika's: its answers can be awaited, and where pika raises, Lost is raised or on its way.

    Its end, or its consumer's, is that of ``whole``: the connection, or what stands for this channel alone.
    """

    def __init__(self, raw: Any, whole: Losable, max_body: int, begin_large: BeginLarge | None) -> None:
        """Bodies over ``max_body`` go where ``begin_large`` says, nowhere without it."""
        self._raw = raw
        self._whole = whole
        raw.connection.limit_bodies(raw, max_body, begin_large)
        raw.add_on_close_callback(lambda _channel, error: whole.fail(_reason(error)))
        raw.add_on_cancel_callback(lambda _frame: whole.fail("the broker ended the consumer: is the queue gone?"))

    async def expect_queue(self, name: str) -> None:
        """See that the queue is there; raises Lost."""
        await self._ask(self._raw.queue_declare, queue=name, passive=True)

    async def expect_exchange(self, name: str) -> None:
        """See that the exchange is there; raises Lost."""
        await self._ask(self._raw.exchange_declare, exchange=name, passive=True)

    async def declare_fanout(self, name: str) -> None:
        """See to it that there is a durable fanout exchange of this name; raises Lost."""
        await self._ask(self._raw.exchange_declare, exchange=name, exchange_type="fanout", durable=True)

    async def declare_own_queue(self, name: str, exchange: str, arguments: dict[str, object]) -> None:
        """Make a queue that is bound to the exchange, and is this connection's alone and gone with it; raises Lost."""
        await self._ask(self._raw.queue_declare, queue=name, exclusive=True, auto_delete=True, arguments=arguments)
        await self._ask(self._raw.queue_bind, queue=name, exchange=exchange)

    async def qos(self, prefetch: int) -> None:
        """Bound the deliveries that are not settled; raises Lost."""
        await self._ask(self._raw.basic_qos, prefetch_count=prefetch)

    async def confirm(self, on_confirmed: Callable[[int, bool, bool], None], on_returned: Callable[..., None]) -> None:
        """Ask for confirms: ``on_confirmed(sequence, multiple, taken)``, ``on_returned(target, body, properties)``."""

        def answered(frame: Any) -> None:
            answer = frame.method
            on_confirmed(answer.delivery_tag, answer.multiple, isinstance(answer, spec.Basic.Ack))

        def returned(_channel: Any, method: Any, properties: RawProperties, body: bytes) -> None:
            on_returned((_text(method.exchange), _text(method.routing_key)), body, properties.raw)

        self._raw.add_on_return_callback(returned)
        await self._ask(self._raw.confirm_delivery, ack_nack_callback=answered)

    async def consume(self, queue: str, on_delivery: Callable[..., None], *, settled: bool = False) -> str:
        """Begin to consume, give the consumer's tag: ``on_delivery`` gets what a Delivery holds but its generation.

        What is ``settled`` is so by its delivery, and never acked.
        """
        came_by = ("", "")

        def delivered(_channel: Any, method: Any, properties: RawProperties, body: bytes) -> None:
            nonlocal came_by
            # Nearly all come by the same: 10,000 copies of it would be 1.4 MB.
            if (names := (_text(method.exchange), _text(method.routing_key))) != came_by:
                came_by = names
            on_delivery(method.delivery_tag, body, properties.raw, method.redelivered, *came_by)

        consume = partial(self._raw.basic_consume, queue=queue, on_message_callback=delivered, auto_ack=settled)
        frame = await self._ask(consume)
        return str(frame.method.consumer_tag)

    async def cancel(self, consumer: str) -> None:
        """End the consumer; what the broker sent before it knew is still delivered."""
        answer = self._ask(self._raw.basic_cancel, consumer_tag=consumer)
        forget_cancelled(self._raw, consumer)
        await answer

    def publish(self, exchange: str, routing_key: str, body: bytes, properties: bytes) -> None:
        """Publish as mandatory; raises Lost where that fails: then the channel ends, whatever has gone out."""
        try:
            self._raw.basic_publish(exchange, routing_key, body, RawProperties(properties), True)
        except Exception as error:  # noqa: BLE001 - no memory, say: both sides do not count the same any more
            reason = _reason(error)
            asyncio.get_running_loop().call_soon(self._end, reason)
            raise Lost(reason) from None

    async def publish_large(self, target: tuple[str, str], body: LargeBody, properties: bytes) -> None:
        """Publish as mandatory, piece by piece, on a channel that nothing else uses; raises Lost.

        A message that was begun has to be ended: where that is not possible the whole connection ends.
        """
        connection, lost = self._raw.connection, self._whole.future()
        try:
            for room in connection.publish_large(self._raw, target, body, properties):
                await asyncio.wait({room, lost}, return_when=asyncio.FIRST_COMPLETED)
                if lost.done():
                    lost.result()
        except Lost:
            raise
        except BaseException:
            connection.drop()
            raise
        finally:
            if not lost.cancel():
                lost.exception()

    def close(self) -> None:
        """End the channel; what was published on it and not confirmed has an unknown end."""
        with contextlib.suppress(AMQPError):
            if self._raw.is_open:
                self._raw.close()

    def ack(self, tag: int, *, multiple: bool) -> None:
        """Settle a delivery, or all up to it, as done."""
        try:
            self._raw.basic_ack(tag, multiple)
        except AMQPError:
            return

    def nack(self, tag: int) -> None:
        """Give a delivery back to the queue."""
        try:
            self._raw.basic_nack(tag, False, True)
        except AMQPError:
            return

    def _end(self, reason: str) -> None:
        self._whole.fail(reason)
        with contextlib.suppress(AMQPError):
            if self._raw.is_open:
                self._raw.close()

    def _ask(self, method: Callable[..., object], **arguments: object) -> asyncio.Future[Any]:
        answer = self._whole.future()
        _call(answer, method, callback=partial(_settle, answer), **arguments)
        return answer


class Connection(Losable):
    """A connection of pika's that is open; it is lost when a channel of it is, too."""

    def __init__(self, raw: Any, closed: asyncio.Future[str], max_body: int) -> None:
        super().__init__()
        self._raw = raw
        self._max_body = max_body
        self._closed = closed
        self.frame_max = raw.params.frame_max or FRAME_MAX
        self.max_properties = max_properties(self.frame_max)
        closed.add_done_callback(lambda closed: self.fail(closed.result()))

    async def open_channel(self, whole: Losable | None = None, begin_large: BeginLarge | None = None) -> Channel:
        """Open a channel whose end is that of ``whole``, of the connection unless it is given; raises Lost.

        A body over ``max_body`` goes where ``begin_large`` says; without it, it arrives as one that was thrown away.
        """
        opened = self.future()
        _call(opened, self._raw.channel, on_open_callback=partial(_settle, opened))
        limit = self._max_body if begin_large is not None else max(self._max_body, MAX_OWN_BODY)
        return Channel(await opened, whole or self, limit, begin_large)

    async def declare_queue(self, name: str, arguments: dict[str, object]) -> str | None:
        """Declare a durable queue on a channel of its own; give why it cannot be had, if so; raises Lost."""
        answer = self.future()

        def opened(channel: Any) -> None:
            channel.add_on_close_callback(lambda _channel, error: _settle(answer, _reason(error)))
            channel.queue_declare(
                queue=name, durable=True, arguments=arguments, callback=lambda _frame: channel.close()
            )

        _call(answer, self._raw.channel, on_open_callback=opened)
        reason = str(await answer)
        return None if reason.startswith(_CLOSED_BY_US) else reason

    async def messages_in(self, name: str) -> int:
        """Return how many messages wait in a queue, those that nobody has taken; 0 if there is none; raises Lost."""
        answer, _ = await self._asked("queue_declare", queue=name, passive=True)
        return int(answer.method.message_count) if answer is not None else 0

    async def lock(self, name: str) -> str | None:
        """Have a queue that no other connection may have until ``unlock``; return why not, if so; raises Lost."""
        answer, refusal = await self._asked("queue_declare", queue=name, exclusive=True)
        return refusal if answer is None else None

    async def unlock(self, name: str) -> None:
        """Give up the queue of ``lock``; the broker does so by itself when the connection ends; raises Lost."""
        await self._asked("queue_delete", queue=name)

    async def _asked(self, method: str, **arguments: object) -> tuple[Any, str]:
        """Ask on a channel of its own; return the broker's answer, and None and why if it refuses; raises Lost."""
        answer, frames = self.future(), []

        def opened(channel: Any) -> None:
            def answered(frame: Any) -> None:
                frames.append(frame)
                channel.close()

            channel.add_on_close_callback(lambda _channel, error: _settle(answer, _reason(error)))
            getattr(channel, method)(callback=answered, **arguments)

        _call(answer, self._raw.channel, on_open_callback=opened)
        refusal = str(await answer)
        return (frames[0], "") if frames else (None, refusal)

    async def close(self) -> None:
        """Close it in good order within half a second, or drop it."""
        if self._closed.done():
            return
        with contextlib.suppress(AMQPError):
            if self._raw.is_open:
                self._raw.close()
        await asyncio.wait({self._closed}, timeout=CLOSE_TIMEOUT)
        if not self._closed.done():
            self._raw.drop()


async def connect(config: BrokerConfig, url: BrokerUrl, role: Role) -> Connection:
    """Connect with the password of this moment; raises Lost."""
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[None] = loop.create_future()
    closed: asyncio.Future[str] = loop.create_future()

    try:
        password = read_password(config)
    except NoPassword as error:
        raise Lost(str(error)) from None
    hint = f"; the password {said}" if (said := doubt(password)) else ""

    def failed(_raw: object, error: object) -> None:
        if not opened.done():
            reason = _reason(error)
            opened.set_exception(Lost(f"{reason}{hint}" if _REFUSED in reason else reason))

    raw = SteadyConnection(
        _parameters(config, url, role.name, password),
        on_open_callback=partial(_settle, opened),
        on_open_error_callback=failed,
        on_close_callback=lambda _raw, error: _settle(closed, _reason(error)),
        custom_ioloop=loop,
    )
    raw.add_on_connection_blocked_callback(lambda *_: role.blocked(on=True))
    raw.add_on_connection_unblocked_callback(lambda *_: role.blocked(on=False))
    try:
        await opened
    except asyncio.CancelledError:
        raw.drop()
        raise
    return Connection(raw, closed, config.max_body)


def _parameters(config: BrokerConfig, url: BrokerUrl, role: str, password: str) -> pika.ConnectionParameters:
    try:
        tls = pika.SSLOptions(tls_context(config), url.host) if url.tls else None
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Lost(f"the certificates of broker.ca_file, client_cert_file cannot be used: {error}") from None
    return pika.ConnectionParameters(
        host=url.host,
        port=url.port,
        virtual_host=url.vhost,
        credentials=pika.PlainCredentials(url.user, password, erase_on_connect=True),
        ssl_options=tls,
        frame_max=FRAME_MAX,
        heartbeat=HEARTBEAT,
        blocked_connection_timeout=None,
        socket_timeout=CONNECT_TIMEOUT,
        stack_timeout=CONNECT_TIMEOUT,
        client_properties={"connection_name": f"knime-peruser {socket.gethostname()} {role}"},
    )


def max_properties(frame_max: int) -> int:
    """Give the bytes that properties may have: a content header is one frame (AMQP 0-9-1 sections 2.3.5.2, 4.2.6.1)."""
    return frame_max - 8 - 12


def _call(answer: asyncio.Future[Any], method: Callable[..., object], **arguments: object) -> None:
    """Call what will settle the answer, unless it is settled; what pika raises settles it, too."""
    if answer.done():
        return
    try:
        method(**arguments)
    except AMQPError as error:
        if not answer.done():
            answer.set_exception(Lost(_reason(error)))


def _settle(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _text(name: str | bytes) -> str:
    """Give a name that pika could not decode as text that gives the same bytes again."""
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def _reason(error: object) -> str:
    """Say what is behind an exception of pika's, which wraps causes in several ways."""
    for _ in range(8):
        nested = getattr(error, "exceptions", None) or [getattr(error, "exception", None)]
        arguments = getattr(error, "args", ())
        if isinstance(nested[-1], BaseException):
            error = nested[-1]
        elif arguments and isinstance(arguments[0], BaseException):
            error = arguments[0]
    code, text = getattr(error, "reply_code", None), getattr(error, "reply_text", None)
    said = f"{code} {text}" if code is not None else f"{type(error).__name__}: {error}"
    hint = _HINTS.get(code or 0) or (f"; {advice}" if (advice := cure(error)) else "")
    return f"{said[:300]}{hint}".encode("ascii", "backslashreplace").decode()


_CLOSED_BY_US: Final = "0 "
_REFUSED: Final = "ACCESS_REFUSED"
_HINTS: Final = {
    403: " (look at the account's password and permissions)",
    404: " (KNIME Server makes it, it is waited for)",
}
