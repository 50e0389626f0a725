"""Stands between a program and the broker, and kills the program when it has sent its Nth frame.

What the program sends afterwards does not arrive, what it sent before does: so a test sees every state that a SIGKILL
can leave in the broker, one after the other, and not those that chance picks.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

_GREETING: Final = 8
"""Bytes of "AMQP0091", AMQP 0-9-1 4.2.2."""
_HEAD: Final = 7


class KillingProxy:
    """Takes one connection on loopback; close it."""

    def __init__(self, port: int, frames: int) -> None:
        self._broker, self._frames = port, frames
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._victim = 0
        self.has_killed = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self, victim: int) -> None:
        """Begin; ``victim`` is the process that will connect."""
        self._victim = victim
        self._thread.start()

    def close(self) -> None:
        """End, when both sides have."""
        self._thread.join(30.0)
        self._socket.close()

    def _serve(self) -> None:
        client, _ = self._socket.accept()
        with client, socket.create_connection(("127.0.0.1", self._broker)) as broker:
            back = threading.Thread(target=_pump, args=(broker, client), daemon=True)
            back.start()
            with suppress(OSError):
                for number, frame in enumerate(_frames(client)):
                    broker.sendall(frame)
                    if number == self._frames:
                        os.kill(self._victim, signal.SIGKILL)
                        self.has_killed = True
                        break
            with suppress(OSError):
                broker.shutdown(socket.SHUT_WR)
            back.join(30.0)


def _frames(client: socket.socket) -> Iterator[bytes]:
    """Give the greeting, then frame after frame: type, channel, size, payload, end (AMQP 0-9-1, 4.2.3)."""
    reader = client.makefile("rb")
    yield reader.read(_GREETING)
    while len(head := reader.read(_HEAD)) == _HEAD:
        yield head + reader.read(int.from_bytes(head[3:], "big") + 1)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            sink.sendall(block)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
