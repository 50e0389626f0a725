"""The supervisor's end of the gate: binds the socket, runs the gate without privilege, packs and unpacks datagrams.

It trusts the kernel's socket calls. It does not trust the gate: a datagram that is not of the agreed form is counted
as a frame that does not decode, and a gate that dies is executed anew on the same listening descriptor.
"""

import contextlib
import os
import resource
import signal
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Final, NamedTuple

from protocol.messages import MAX_REQUEST
from protocol.record import Peer
from root_helper.spawn import become, end_with, fresh_process, no_new_privileges

_GATE: Final = str(Path(__file__).with_name("gate.py"))
_HEADER: Final = struct.Struct("=cIIIB")
_MAX_DATAGRAM: Final = _HEADER.size + 255 + MAX_REQUEST
DESCRIPTORS: Final = 4096  # that the gate may have open
_RLIMITS: Final = ((resource.RLIMIT_NOFILE, DESCRIPTORS), (resource.RLIMIT_AS, 256 * 2**20), (resource.RLIMIT_CORE, 0))


class Datagram(NamedTuple):
    """What the gate handed over: a frame and the address to answer to, or a stranger (``frame`` is None)."""

    peer: Peer
    identity: bytes
    frame: bytes | None


class Gateway:
    """The gate process and the socket that it serves."""

    def __init__(self, path: str, listener: tuple[int, int], gate: tuple[int, int]) -> None:
        """Bind ``path`` for the listener's (uid, gid) and run the gate as its own (uid, gid)."""
        self._path, self._listener, self._gate = path, listener, gate
        self._bind()
        self.start()

    def _bind(self) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # the lock is held: it is a left-over
        umask = os.umask(0o117)
        try:
            listening.bind(self._path)
        finally:
            os.umask(umask)
        # PRIVILEGED: the socket's directory is root's and not writable by others, so the path is what was bound.
        os.chown(self._path, 0, self._listener[1])
        listening.listen(128)
        self._inode = os.stat(self._path).st_ino
        self._listening = listening.detach()

    def start(self) -> None:
        """Fork the gate and execute it anew, so that none of root's memory goes along.

        Raises:
            OSError: there is no process or descriptor left.
        """
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        # PRIVILEGED: the child drops to the gate's account before it executes anything.
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            self._execute(far, parent)
        far.close()
        self.channel, self.pid, self.pidfd = near, pid, os.pidfd_open(pid)

    def _execute(self, far: socket.socket, parent: int) -> None:
        try:
            fresh_process(keep=(self._listening, far.fileno()))
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            for stream in (0, 1, 2):  # no terminal of root's, no log that it could forge a line in
                os.dup2(null, stream)
            for limit, value in _RLIMITS:
                resource.setrlimit(limit, (value, value))
            # PRIVILEGED: gives root up for good.
            become(*self._gate, ())
            no_new_privileges()
            end_with(parent)
            descriptors = [self._listening, far.fileno()]
            for descriptor in descriptors:
                os.set_inheritable(descriptor, True)
            arguments = [sys.executable, "-IS", _GATE, *map(str, descriptors), str(self._listener[0]), *sys.path]
            os.execve(sys.executable, arguments, {})
        finally:
            os._exit(127)

    def reaped(self) -> int | None:
        """Reap the gate that died and close what led to it; give its status, None while a tracer holds on to it."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.channel.close()
        os.close(self.pidfd)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def kill(self, pid: int) -> None:
        """End the gate, if it still is the one with this pid."""
        if pid and pid == self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # PRIVILEGED: the gate has an account of its own; known by its pidfd, it can be nobody else.
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def socket_is_there(self) -> bool:
        """Tell whether the path still names the bound socket."""
        with contextlib.suppress(OSError):
            status = os.stat(self._path, follow_symlinks=False)
            return stat.S_ISSOCK(status.st_mode) and status.st_ino == self._inode
        return False

    def bind_again(self) -> None:
        """Bind a socket file that vanished; the gate that serves the old one is ended and restarts on the new.

        Raises:
            OSError: it could not be bound; the old one is as it was.
        """
        old = self._listening
        self._bind()
        os.close(old)
        self.kill(self.pid)

    def receive(self) -> Datagram | None:
        """Give the next datagram, None where there is none.

        Raises:
            EOFError: the gate has closed its end, or said nothing at all.
        """
        try:
            datagram = self.channel.recv(_MAX_DATAGRAM + 1)
        except (BlockingIOError, ConnectionError):
            return None
        if not datagram:
            raise EOFError
        if len(datagram) < _HEADER.size:
            return Datagram(Peer(*self._gate, self.pid), b"", b"")
        kind, uid, gid, pid, length = _HEADER.unpack_from(datagram)
        identity, frame = datagram[_HEADER.size :][:length], datagram[_HEADER.size + length :]
        stranger = kind == b"S" or uid != self._listener[0]  # the gate's word; it may not name somebody else as asking
        return Datagram(Peer(uid, gid, pid), identity, None if stranger else frame)

    def send(self, identity: bytes, frame: bytes) -> None:
        """Answer through the gate; with a gate that does not read, the reply is lost and will be asked for again."""
        with contextlib.suppress(OSError):
            self.channel.send(bytes([len(identity)]) + identity + frame)
