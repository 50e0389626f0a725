"""Stands between programs and the broker, passes on everything, and cuts all connections when a test says so.

A cut is a reset on both sides, as a firewall or a broken line makes it: nobody closes in good order.
"""

import socket
import struct
import threading
from contextlib import suppress
from typing import Final

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger: close(2) sends a reset."""


class CuttingProxy:
    """Takes any number of connections on loopback; close it."""

    def __init__(self, port: int) -> None:
        self._broker = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many are passed on now."""
        with self._lock:
            return len(self._open) // 2

    def cut(self) -> int:
        """Cut what is connected; return how many connections that were."""
        with self._lock:
            cut, self._open = self._open, set()
        for one in cut:
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it, which closes it
        return len(cut) // 2

    def close(self) -> None:
        """Take no more connections and cut those that there are."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.cut()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        try:
            broker = socket.create_connection(("127.0.0.1", self._broker))
        except OSError:
            client.close()
            return
        with self._lock:
            self._open |= {client, broker}
        back = threading.Thread(target=_pump, args=(broker, client), daemon=True)
        back.start()
        _pump(client, broker)
        back.join()
        with self._lock:
            self._open -= {client, broker}
        client.close()
        broker.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            sink.sendall(block)
    for one in (source, sink):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
