"""The seam into pika: the few internals of it that we replace or use, all in this file, and looked for at each start.

pika collects a body of any size, copies what it has read again for each read, believes every length that the other
side announces, and writes a message in one go. Here a frame is as long as was negotiated at most, what is read is
copied a fixed number of times, a body over a limit goes to a LargeBody as its frames arrive, and a large message is
written frame by frame while others' frames go between them. What breaks the protocol ends the connection. Tried with
pika 1.2.0 and 1.4.4, plain and TLS.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any, Final

import pika.channel
from pika import exceptions, frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils import io_services_utils

from broker_listener.large_body import MAX_ANNOUNCED, LargeBody
from broker_listener.properties import RawProperties

READ_SIZE: Final = 131072
"""Bytes of one read: pika's 4096 are 30,720 reads for a body of 120 MiB."""
WRITE_AHEAD: Final = 131072
"""While more than that is not written yet, a large message waits: what others publish is behind little of it."""
_OVERHEAD: Final = 8
"""Bytes of a frame beside its payload: type, channel, size and end (AMQP 0-9-1 section 2.3.5)."""

BeginLarge = Callable[[int], LargeBody]
"""Is asked at the header of a body over the limit, with its size, for where its frames go. Who gives none sees b""."""


class Broken(exceptions.AMQPError):  # type: ignore[misc]  # pika has no types
    """The other side breaks the protocol, or announces what no broker has."""


class SteadyConnection(AsyncioConnection):  # type: ignore[misc]  # pika has no types
    """pika's connection, which reads and writes in bounded pieces.

    It sends at once what one turn of the loop writes: a send for each frame is a sixth of a relay's time.
    """

    def __init__(self, *arguments: object, **keywords: object) -> None:
        self._unread = b""
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._waits_for_room: set[asyncio.Future[None]] = set()
        super().__init__(*arguments, **keywords)

    def drop(self) -> None:
        """End it without a word to the broker."""
        with contextlib.suppress(exceptions.AMQPError):
            self.close()
        if self._transport is not None:
            self._transport.abort()

    def limit_bodies(self, channel: Any, limit: int, begin_large: BeginLarge | None) -> None:
        """Have no body over ``limit`` collected on the channel: ``begin_large`` takes it, else it is thrown away."""
        channel._content_assembler = _Assembler(limit, begin_large)  # noqa: SLF001 - the seam

    def publish_large(
        self, channel: Any, target: tuple[str, str], body: LargeBody, properties: bytes
    ) -> Iterator[asyncio.Future[None]]:
        """Write a message piece by piece: await each future that is yielded, it is done when there is room.

        Nothing else may be written on the channel meanwhile, and the body has to be written to its end: who cannot go
        on has to end the connection.
        """
        number, size, most = channel.channel_number, body.size, self._get_body_frame_max_length()
        method = spec.Basic.Publish(exchange=target[0], routing_key=target[1], mandatory=True)
        header = frame.Header(number, size, RawProperties(properties))
        self._output_marshaled_frames([frame.Method(number, method).marshal(), header.marshal()])
        for piece in _cut(body.taken(), most):
            yield self._room()
            self._output_marshaled_frames([frame.Body(number, piece).marshal()])

    def _room(self) -> asyncio.Future[None]:
        """Return a future that is done in a later turn of the loop, when little is left to be written."""
        future: asyncio.Future[None] = self.ioloop.create_future()
        self._waits_for_room.add(future)
        future.add_done_callback(self._waits_for_room.discard)
        self.ioloop.call_soon(self._tell_room)
        return future

    def _tell_room(self) -> None:
        if self._transport is None or self._unsent_bytes + self._transport.get_write_buffer_size() >= WRITE_AHEAD:
            return
        for future in list(self._waits_for_room):
            if not future.done():
                future.set_result(None)

    def _proto_connection_made(self, transport: Any) -> None:
        produce = transport._produce  # noqa: SLF001 - the seam

        def produced() -> None:
            try:
                produce()
            finally:  # what the socket does not take now is told as an exception
                if self._waits_for_room:
                    self.ioloop.call_soon(self._tell_room)

        transport._produce = produced  # noqa: SLF001 - the seam
        transport._MAX_RECV_BYTES = READ_SIZE  # noqa: SLF001 - the seam
        super()._proto_connection_made(transport)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._unsent:
            self.ioloop.call_soon(self._send)
        self._unsent.append(data)
        self._unsent_bytes += len(data)

    def _send(self) -> None:
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        if self._transport is not None:
            super()._adapter_emit_data(data)

    def _on_data_available(self, data_in: bytes) -> None:
        """Handle each frame that is complete; what is left waits for the next read."""
        data = self._unread + data_in if self._unread else data_in
        self._unread = b""
        at = 0
        for end in self._frame_ends(data):
            _, value = frame.decode_frame(data[at:end])
            self.bytes_received += end - at
            at = end
            self._process_frame(value)
        self._unread = data[at:] if at else data

    def _frame_ends(self, data: bytes) -> Iterator[int]:
        longest = (self.params.frame_max or READ_SIZE) - _OVERHEAD
        at, length = 0, len(data)
        while length - at >= _OVERHEAD:
            if data.startswith(b"AMQP", at):  # the broker's answer to a version that it does not speak
                end = at + _OVERHEAD
            else:
                size = int.from_bytes(data[at + 3 : at + 7], "big")
                if size > longest:
                    raise Broken(f"the broker announces a frame of {size} bytes, {longest} were agreed upon")
                end = at + size + _OVERHEAD
            if end > length:
                return
            yield end
            at = end


class _Assembler:
    """Stands for pika's ContentFrameAssembler: one message of a channel at a time, from its frames."""

    def __init__(self, limit: int, begin_large: BeginLarge | None) -> None:
        self._limit = limit
        self._begin_large = begin_large
        self._method: Any = None
        self._header: Any = None
        self._large: LargeBody | None = None
        self._body = bytearray()
        self._missing = 0

    def process(self, value: Any) -> tuple[Any, Any, bytes | LargeBody] | None:
        """Take a frame; return method, header and body when the message is complete."""
        if isinstance(value, frame.Body):
            return self._take(value.fragment)
        if isinstance(value, frame.Header):
            return self._begin(value)
        if not (isinstance(value, frame.Method) and spec.has_content(value.method.INDEX)):
            raise exceptions.UnexpectedFrameError(value)
        if self._method is not None:
            raise Broken("the broker begins a message before it has ended another")
        self._method = value
        return None

    def _begin(self, header: Any) -> tuple[Any, Any, bytes | LargeBody] | None:
        size = header.body_size
        if self._method is None or self._header is not None:
            raise Broken("the broker sends a content header that belongs to no message")
        if size > MAX_ANNOUNCED:
            raise Broken(f"the broker announces a body of {size} bytes, no broker holds one over {MAX_ANNOUNCED}")
        self._header, self._missing = header, size
        if size > self._limit:
            self._large = LargeBody(size, kept=False) if self._begin_large is None else self._begin_large(size)
        return None if size else self._end(b"")

    def _take(self, fragment: bytes) -> tuple[Any, Any, bytes | LargeBody] | None:
        if self._header is None or len(fragment) > self._missing:
            raise Broken("the broker sends more of a body than it has announced")
        self._missing -= len(fragment)
        if self._large is not None:
            self._large.add(fragment)
            return None if self._missing else self._end(b"" if self._begin_large is None else self._large)
        if not self._missing and not self._body:  # nearly all come in one frame
            return self._end(fragment)
        self._body += fragment
        return None if self._missing else self._end(bytes(self._body))

    def _end(self, body: bytes | LargeBody) -> tuple[Any, Any, bytes | LargeBody]:
        whole = self._method, self._header, body
        self._method = self._header = self._large = None
        self._body = bytearray()
        return whole


def forget_cancelled(channel: Any, consumer: str) -> None:
    """Have pika deliver what is on its way to a consumer that was cancelled: unasked, it would reject it."""
    channel._cancelled.discard(consumer)  # noqa: SLF001 - the seam


def missing() -> list[str]:
    """Return what this pika lacks of what is used here; a pika that has another inside would fail in other ways."""
    return [f"{user}: {name}" for user, name in _USED if not _uses(user, name)]


def _uses(user: str, name: str) -> bool:
    module, *path = user.split(".")
    found = reduce(lambda found, part: getattr(found, part, None), path, _MODULES[module])
    function = getattr(found, "__wrapped__", found)
    return name in getattr(getattr(function, "__code__", None), "co_names", ())


def _cut(pieces: Iterable[bytearray], most: int) -> Iterator[bytes]:
    for piece in pieces:
        for at in range(0, len(piece), most):
            yield bytes(piece[at : at + most])


_MODULES: Final = {"connection": AsyncioConnection, "channel": pika.channel, "transport": io_services_utils}
# What of pika has to name what: a method that we replace is called, an attribute that we set is read.
_USED: Final = (
    ("connection._proto_data_received", "_on_data_available"),
    ("connection._on_data_available", "_process_frame"),
    ("connection._output_marshaled_frames", "_adapter_emit_data"),
    ("connection._send_message", "_output_marshaled_frames"),
    ("connection._get_body_frame_max_length", "frame_max"),
    ("connection._adapter_disconnect_stream", "_transport"),
    ("connection._trim_frame_buffer", "bytes_received"),
    ("channel.Channel._handle_content_frame", "_content_assembler"),
    ("channel.Channel._on_deliver", "_cancelled"),
    ("channel.ContentFrameAssembler.process", "has_content"),
    ("transport._AsyncTransportBase._consume", "_MAX_RECV_BYTES"),
    ("transport._AsyncPlaintextTransport._on_socket_writable", "_produce"),
    ("transport._AsyncSSLTransport.write", "_produce"),
    ("transport._AsyncTransportBase.get_write_buffer_size", "_tx_buffered_byte_count"),
)
