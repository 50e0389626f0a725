"""Moves frames between the listener's ZeroMQ socket and the supervisor: the only file here that imports zmq.

libzmq parses what a stranger sends, so this process has no privilege, no file and no knowledge: it is executed anew
with two descriptors, as an account of its own, and trusts nobody. What it says is as hostile to the supervisor as
what the listener says. It reads no configuration and never looks into a frame.

Datagrams, gate to supervisor: a kind (``F``: a frame, ``S``: a stranger), the sender's uid, gid and pid, the length
of the ZeroMQ identity, the identity, the frame. Supervisor to gate: the identity's length, the identity, the frame.
"""

import contextlib
import socket
import struct
import sys
from typing import Final

if __name__ == "__main__":  # executed with -S: no .pth file, no sitecustomize; it imports from where root itself does
    sys.path += sys.argv[4:]

import zmq

MAX_DATAGRAM: Final = 8192
FRAMES_A_ROUND: Final = 8
HEADER: Final = struct.Struct("=cIIIB")
NOBODY: Final = (2**32 - 1, 2**32 - 1, 0)
OPTIONS: Final = (
    (zmq.MAXMSGSIZE, 1024),
    (zmq.RCVHWM, 64),
    (zmq.SNDHWM, 64),
    (zmq.LINGER, 0),
    (zmq.HANDSHAKE_IVL, 2000),
    (zmq.ROUTER_HANDOVER, 0),
    (zmq.ROUTER_MANDATORY, 0),
)


def main(listening: int, channel: socket.socket, listener_uid: int) -> None:
    """Serve until the supervisor is gone."""
    context = zmq.Context(io_threads=1)
    router = context.socket(zmq.ROUTER)
    for option, value in OPTIONS:
        router.setsockopt(option, value)
    router.setsockopt(zmq.USE_FD, listening)
    router.bind("ipc://helper")  # the descriptor is bound already; the name is not looked at
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(channel, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if channel.fileno() in ready and not _deliver_replies(channel, router):
            return
        if router in ready:
            _pass_frames(router, channel, listener_uid)


def _deliver_replies(channel: socket.socket, router: "zmq.Socket[bytes]") -> bool:
    """Send what the supervisor answered; False when it is gone."""
    for _ in range(FRAMES_A_ROUND):
        try:
            datagram = channel.recv(MAX_DATAGRAM, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        if not datagram:
            return False
        end = 1 + datagram[0]
        with contextlib.suppress(zmq.ZMQError):  # a peer that went away or never reads loses its reply
            router.send_multipart([datagram[1:end], datagram[end:]], zmq.NOBLOCK)
    return True


def _pass_frames(router: "zmq.Socket[bytes]", channel: socket.socket, listener_uid: int) -> None:
    for _ in range(FRAMES_A_ROUND):
        try:
            parts = router.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return
        uid, gid, pid = _credentials(parts[-1])
        identity = parts[0].bytes
        if uid != listener_uid:
            channel.send(HEADER.pack(b"S", uid, gid, pid, 0))
        elif len(parts) == 2:
            channel.send(HEADER.pack(b"F", uid, gid, pid, len(identity)) + identity + parts[1].bytes)


def _credentials(frame: zmq.Frame) -> tuple[int, int, int]:
    """Give uid, gid and pid of the sender: SO_PEERCRED, as libzmq's ipc transport notes it on each message.

    On those of a peer that speaks ZMTP 1 or 2 it notes nothing: such a one is a stranger, with ids that nobody has.
    """
    try:
        _, uid, gid, pid = str(frame.get("Peer-Address")).rsplit(":", 3)
    except zmq.ZMQError:
        return NOBODY
    return int(uid), int(gid), int(pid)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[2])) as supervisor:
        main(int(sys.argv[1]), supervisor, int(sys.argv[3]))
