"""What the kernel saw: every fork, change of uid, execve and exit, from its process events connector (netlink(7)).

Nothing that a process does or says can hide from it. An event that was lost for want of room is an error, so that a
test never takes silence for innocence.
"""

import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Final

_NETLINK_CONNECTOR: Final = 11
_CN_IDX_PROC: Final = 1
_LISTEN: Final = 1
_FORK: Final = 0x1
_EXEC: Final = 0x2
_UID: Final = 0x4  # linux/cn_proc.h
_HEADER: Final = struct.Struct("=IHHII")
_MESSAGE: Final = struct.Struct("=IIIIHH")
_EVENT: Final = struct.Struct("=IIQ")
_DATA: Final = struct.Struct("=IIII")
_ROOM: Final = 64 * 2**20


class NotToBeHad(Exception):
    """The kernel does not tell its events here: no root, or a container."""


@dataclass(frozen=True, slots=True)
class Execution:
    """A process called execve as ``uid``. ``at``: Unix seconds. ``of``: the pid that had become this uid."""

    pid: int
    uid: int
    of: int
    at: float


class KernelEvents:
    """Listens from now until ``stop``. It follows who has which uid: by change, or by being forked of one that has."""

    def __init__(self) -> None:
        """Begin.

        Raises:
            NotToBeHad: the kernel does not tell.
        """
        self.became: dict[int, int] = {}
        """Each process that gave up root for a uid for good, real uid and all: pid to uid."""
        self.forked_at: dict[int, float] = {}
        self.became_at: dict[int, float] = {}
        self.executions: list[Execution] = []
        self._of: dict[int, tuple[int, int]] = {}
        self._fault: OSError | None = None
        self._socket = _connected()
        self._done, self._end = os.pipe()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take in what was sent until now, and listen no more.

        Raises:
            OSError: events were lost.
        """
        os.write(self._end, b".")
        self._thread.join()
        for descriptor in (self._done, self._end):
            os.close(descriptor)
        self._socket.close()
        if self._fault is not None:
            raise self._fault

    def _listen(self) -> None:
        offset = time.time() - time.monotonic()  # the connector's clock is the monotonic one
        try:
            while True:
                ready, _, _ = select.select([self._socket.fileno(), self._done], [], [])
                if self._socket.fileno() not in ready:
                    return
                self._take(self._socket.recv(4096), offset)
        except OSError as error:  # ENOBUFS: events were lost
            self._fault = error

    def _take(self, datagram: bytes, offset: float) -> None:
        start = _HEADER.size + _MESSAGE.size
        if len(datagram) < start + _EVENT.size + _DATA.size:
            return
        what, _, nanoseconds = _EVENT.unpack_from(datagram, start)
        one, leader, two, three = _DATA.unpack_from(datagram, start + _EVENT.size)
        at = nanoseconds / 1e9 + offset
        if what == _UID and two == three:  # real and effective: for good, and not to look with the user's rights
            self._of[leader] = (leader, two)
            if two:
                self.became[leader], self.became_at[leader] = two, at
        elif what == _FORK and two == three:  # a process, not a thread
            self._of[two], self.forked_at[two] = self._of.get(leader, (0, 0)), at
        elif what == _EXEC and one in self._of and self._of[one][1]:
            of, uid = self._of[one]
            self.executions.append(Execution(one, uid, of, at))


def _connected() -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_CONNECTOR)
    try:
        connection.setsockopt(socket.SOL_SOCKET, 33, _ROOM)  # SO_RCVBUFFORCE, socket(7)
        connection.bind((0, _CN_IDX_PROC))
        body = _MESSAGE.pack(_CN_IDX_PROC, 1, 0, 0, 4, 0) + struct.pack("=I", _LISTEN)
        connection.send(_HEADER.pack(_HEADER.size + len(body), 3, 0, 0, 0) + body)
        connection.settimeout(30.0)
        connection.recv(4096)  # its acknowledgement
        connection.settimeout(None)
    except OSError as error:
        connection.close()
        raise NotToBeHad(f"the kernel's process events: {error}") from error
    return connection
