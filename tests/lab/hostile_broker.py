"""A broker that was taken over: it agrees to everything, and once somebody consumes, it sends whatever a test wants.

A raw server of AMQP 0-9-1; pika is used to write down frames that are right, the rest are the test's bytes.
"""

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pika import frame, spec

_GREETING: Final = 8
_HEAD: Final = 7


class Victim(NamedTuple):
    """Who consumes."""

    send: Callable[[bytes], None]
    consumer: str

    def begin(self, size: int, tag: int = 1) -> None:
        """Send the beginning of a delivery: its method, and a header that announces so many bytes."""
        deliver = spec.Basic.Deliver(self.consumer, tag, exchange="", routing_key="knime-jobs")
        header = (60).to_bytes(2, "big") + bytes(2) + size.to_bytes(8, "big") + bytes(2)
        self.send(method(deliver) + raw_frame(spec.FRAME_HEADER, header))

    def body(self, payload: bytes) -> None:
        """Send a body frame."""
        self.send(body(payload))


class HostileBroker:
    """Serves every connection on a port of loopback; ``attack`` is called for each that consumes."""

    def __init__(self, attack: Callable[[Victim], None]) -> None:
        self._attack = attack
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.attacks = 0
        """How many connections have consumed."""
        self.ended = 0
        """How many of these the client ended while it was attacked, or afterwards."""
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for one in (self._socket, *self._clients):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        attacked, published = False, Counter[int]()
        with suppress(OSError, EOFError):
            reader = client.makefile("rb")
            reader.read(_GREETING)
            client.sendall(method(spec.Connection.Start(server_properties={"capabilities": _CAPABILITIES}), 0))
            for number, asked in _methods(reader):
                for answer in _ANSWERS.get(type(asked), ()):
                    client.sendall(method(answer(), number))
                if isinstance(asked, spec.Queue.Declare):
                    client.sendall(method(spec.Queue.DeclareOk(asked.queue, 0, 0), number))
                if isinstance(asked, spec.Basic.Publish):
                    published[number] += 1
                    if not asked.routing_key.startswith("knime-jobs"):  # the one that proves that it can publish
                        client.sendall(method(spec.Basic.Ack(published[number]), number))
                if isinstance(asked, spec.Basic.Consume):
                    client.sendall(method(spec.Basic.ConsumeOk(asked.consumer_tag), number))
                    attacked = True
                    self.attacks += 1
                    self._attack(Victim(client.sendall, asked.consumer_tag))
        self.ended += attacked


def method(what: Any, channel: int = 1) -> bytes:
    """Return a method frame."""
    return bytes(frame.Method(channel, what).marshal())


def raw_frame(kind: int, payload: bytes, channel: int = 1) -> bytes:
    """Return a frame of this type with this payload."""
    head = bytes([kind]) + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big")
    return head + payload + bytes([spec.FRAME_END])


def body(payload: bytes) -> bytes:
    """Return a body frame."""
    return raw_frame(spec.FRAME_BODY, payload)


def _methods(reader: Any) -> Iterator[tuple[int, Any]]:
    while len(head := reader.read(_HEAD)) == _HEAD:
        whole = head + reader.read(int.from_bytes(head[3:], "big") + 1)
        _, value = frame.decode_frame(whole)
        if isinstance(value, frame.Method):
            yield value.channel_number, value.method


_CAPABILITIES: Final = {"publisher_confirms": True, "basic.nack": True, "consumer_cancel_notify": True}
_ANSWERS: Final[dict[type, tuple[Callable[[], Any], ...]]] = {
    spec.Connection.StartOk: (lambda: spec.Connection.Tune(2047, 131072, 0),),
    spec.Connection.Open: (spec.Connection.OpenOk,),
    spec.Connection.Close: (spec.Connection.CloseOk,),
    spec.Channel.Open: (spec.Channel.OpenOk,),
    spec.Channel.Close: (spec.Channel.CloseOk,),
    spec.Queue.Delete: (lambda: spec.Queue.DeleteOk(0),),
    spec.Exchange.Declare: (spec.Exchange.DeclareOk,),
    spec.Basic.Qos: (spec.Basic.QosOk,),
    spec.Confirm.Select: (spec.Confirm.SelectOk,),
}
