"""Wires the parts to the poll loop: the gate, the operators' socket, signals, what is due by time.

It trusts the kernel's word on who is at the other end of the operators' socket (SO_PEERCRED), and nobody's bytes.
"""

import contextlib
import logging
import os
import signal
import socket
import struct
import time
from collections import OrderedDict
from typing import Final

from protocol.codec import encode_reply
from protocol.messages import MAX_REQUEST, Exited, Reply
from protocol.record import Event, Peer
from root_helper.gateway import Gateway
from root_helper.loop import Loop
from root_helper.requests import Came, Channel, dispatch
from root_helper.supervisor import Supervisor

_FRAMES_A_ROUND: Final = 8
_MAX_PEERS: Final = 8
_MAX_OPERATORS: Final = 8
_TICK: Final = min(5.0, int(os.environ.get("WATCHDOG_USEC", "10000000")) / 2e6)  # half of it: sd_watchdog_enabled(3)
_LONGEST_GATE_PAUSE: Final = 1.0
_LAST_WORDS: Final = 0.2
_log: Final = logging.getLogger("server")


class Server:
    """The helper at work."""

    def __init__(self, supervisor: Supervisor, loop: Loop, gateway: Gateway) -> None:
        """Take up the sockets and the signals."""
        self._supervisor, self._loop, self._gateway = supervisor, loop, gateway
        self._identities: OrderedDict[bytes, None] = OrderedDict()
        self._operators: dict[int, socket.socket] = {}
        self._gate_pause, self._gate_restarts, self._serving = 0.05, 0, True
        supervisor.notify = self._notify

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; the executors live on."""
        self._watch_signals()
        self._watch_gate()
        self._listen_for_operators()
        self._tick()
        say("READY=1")
        while self._serving:
            self._loop.round()
            self._supervisor.starts.release_ready()
        say("STOPPING=1")

    def _watch_signals(self) -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop_serving)
        self._loop.watch(reading, lambda: os.read(reading, 64))  # _stop_serving has run; the loop looks at what it set

    def _stop_serving(self, *_: object) -> None:
        self._serving = False

    def _watch_gate(self) -> None:
        self._loop.watch(self._gateway.channel.fileno(), self._receive)
        self._loop.watch(self._gateway.pidfd, self._gate_ended)

    def _receive(self) -> None:
        now = time.monotonic()
        for _ in range(_FRAMES_A_ROUND):
            try:
                datagram = self._gateway.receive()
            except EOFError:
                self._hear_no_more()
                return
            if datagram is None:
                return
            if datagram.frame is None:
                self._supervisor.audit.note(Event(event="refused_peer", peer=datagram.peer, reason="stranger"), now)
                continue
            self._remember(datagram.identity)
            self._dispatch(datagram.identity, datagram.frame, datagram.peer, now)

    def _hear_no_more(self) -> None:
        """Let a gate that closed its end come to its own end; one that lives on without it is none of ours."""
        self._loop.forget(self._gateway.channel.fileno())
        pid = self._gateway.pid
        self._loop.after(_LAST_WORDS, lambda: self._gateway.kill(pid))

    def _dispatch(self, identity: bytes, frame: bytes, peer: Peer, now: float) -> None:
        def answer(reply: Reply) -> None:
            self._gateway.send(identity, encode_reply(reply))

        dispatch(self._supervisor, frame, Came(Channel.GATE, peer, answer), now)

    def _remember(self, identity: bytes) -> None:
        """Keep who has spoken last: they get the notices."""
        self._identities[identity] = None
        self._identities.move_to_end(identity)
        if len(self._identities) > _MAX_PEERS:
            self._identities.popitem(last=False)

    def _notify(self, notice: Exited) -> None:
        for identity in self._identities:
            self._gateway.send(identity, encode_reply(notice))

    def _gate_ended(self) -> None:
        """Run the gate again, at once the first time and with a growing pause after; it lives, it is forgiven."""
        self._loop.forget(self._gateway.channel.fileno())
        self._loop.forget(self._gateway.pidfd)
        self._identities.clear()
        self._bury_gate()

    def _bury_gate(self) -> None:
        status = self._gateway.reaped()
        if status is None:
            self._loop.after(_LONGEST_GATE_PAUSE, self._bury_gate)
            return
        _log.error("the gate ended status=%d; it is started again (1: is pyzmq there?)", status)
        self._loop.after(self._gate_pause, self._restart_gate)
        self._gate_pause = min(self._gate_pause * 2, _LONGEST_GATE_PAUSE)

    def _restart_gate(self) -> None:
        try:
            self._gateway.start()
        except OSError as error:
            _log.error("the gate cannot be started, it is tried again: %s", error.strerror)
            self._loop.after(_LONGEST_GATE_PAUSE, self._restart_gate)
            return
        self._gate_restarts += 1
        self._watch_gate()

    def _tick(self) -> None:
        self._supervisor.audit.tick(time.monotonic())
        self._gate_pause = max(0.05, self._gate_pause / 2)
        if not self._gateway.socket_is_there():
            _log.error("the socket file is gone; it is bound again")
            with contextlib.suppress(OSError):  # its directory is gone, too: tried again at the next tick
                self._gateway.bind_again()
        say(f"WATCHDOG=1\nSTATUS={self._status()}")
        self._loop.after(_TICK, self._tick)

    def _status(self) -> str:
        """Give the line that ``systemctl status`` shows."""
        supervisor = self._supervisor
        said = [f"{len(supervisor.registry.by_user)} executors run, {supervisor.free()} more can"]
        said += ["draining"] * supervisor.draining
        said += [f"the gate was restarted {self._gate_restarts} times"] * bool(self._gate_restarts)
        said += [f"nothing is started, {supervisor.audit.fault}"] * bool(supervisor.audit.fault)
        return "; ".join(said)

    def _listen_for_operators(self) -> None:
        path = self._supervisor.config.socket.operator_path
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # the lock is held: it is a left-over
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        umask = os.umask(0o177)
        listening.bind(path)
        os.umask(umask)
        listening.listen(_MAX_OPERATORS)
        self._loop.watch(listening.fileno(), lambda: self._accept(listening))

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except OSError as error:
            _log.error("an operator's connection is left waiting: %s", error.strerror)
            self._loop.forget(listening.fileno())
            self._loop.after(1.0, lambda: self._loop.watch(listening.fileno(), lambda: self._accept(listening)))
            return
        pid, uid, gid = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        peer = Peer(uid, gid, pid)
        if peer.uid != 0 or len(self._operators) >= _MAX_OPERATORS:
            now = time.monotonic()
            self._supervisor.audit.note(Event(event="refused_peer", peer=peer, reason="operator_socket"), now)
            connection.close()
            return
        connection.setblocking(False)
        self._operators[connection.fileno()] = connection
        self._loop.watch(connection.fileno(), lambda: self._serve_operator(connection, peer))

    def _serve_operator(self, connection: socket.socket, peer: Peer) -> None:
        try:
            frame = connection.recv(MAX_REQUEST + 1)
        except OSError:
            frame = b""
        if not frame:
            self._loop.forget(connection.fileno())
            del self._operators[connection.fileno()]
            connection.close()
            return

        def answer(reply: Reply) -> None:
            with contextlib.suppress(OSError):  # an operator who hung up
                connection.send(encode_reply(reply))

        dispatch(self._supervisor, frame, Came(Channel.OPERATOR, peer, answer), time.monotonic())


def say(state: str) -> None:
    """Tell the service manager, where one listens: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            address = f"\0{path[1:]}" if path.startswith("@") else path
            notifier.sendto(state.encode("ascii", "backslashreplace"), address)
