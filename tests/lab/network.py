"""Networks of their own on one machine, and the one way from them to a broker, which can be cut."""

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final


@contextmanager
def entered(namespace: Path) -> Iterator[None]:
    """Be in a network namespace with this thread; what is made or started meanwhile stays there."""
    with Path("/proc/thread-self/ns/net").open("rb") as own, namespace.open("rb") as inside:
        _enter(inside.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def _enter(descriptor: int) -> None:
    """Move this thread: setns(2), which os has from Python 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class IsolatedNetwork:
    """A network with nothing but a loopback interface, and on it a port that leads to a broker outside."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self.path = Path("/run/netns") / name
        self._lock = threading.Lock()
        self._open = True
        self._listening: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._pumps: list[threading.Thread] = []

    def create(self) -> None:
        """Make it, and let connections through."""
        for arguments in (["netns", "add", self._name], ["-n", self._name, "link", "set", "lo", "up"]):
            subprocess.run(["/usr/sbin/ip", *arguments], check=True, capture_output=True)
        with entered(self.path):
            self._listening = socket.create_server(("127.0.0.1", self._port), backlog=256)
        self._accepting = threading.Thread(target=self._accept, args=(self._listening,), daemon=True)
        self._accepting.start()

    def remove(self) -> None:
        """End its connections and take it away."""
        self.cut()
        if self._listening is not None:
            self._listening.shutdown(socket.SHUT_RDWR)
            self._accepting.join()
        for pump in self._pumps:
            pump.join()
        subprocess.run(["/usr/sbin/ip", "netns", "del", self._name], check=False, capture_output=True)

    def cut(self) -> None:
        """Reset every connection and let none through."""
        with self._lock:
            self._open = False
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._open = True

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError), listening:
            while True:
                inside, _ = listening.accept()
                with self._lock:
                    lets_through = self._open
                if lets_through:
                    self._join(inside)
                else:
                    inside.close()

    def _join(self, inside: socket.socket) -> None:
        try:
            outside = socket.create_connection(("127.0.0.1", self._port))
        except OSError:
            inside.close()
            return
        for side in (inside, outside):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._connections |= {inside, outside}
        for one, other in ((inside, outside), (outside, inside)):
            self._pumps = [pump for pump in self._pumps if pump.is_alive()]
            self._pumps.append(threading.Thread(target=self._pump, args=(one, other), daemon=True))
            self._pumps[-1].start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with self._lock:  # whichever direction ends last closes what it read from
            for side in (one, other):
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
            self._connections.discard(one)
            one.close()


_CLONE_NEWNET: Final = 0x40000000
