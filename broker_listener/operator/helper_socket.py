"""The root helper's socket for operators: list, stop, drain, one question after the other.

The helper serves it to root alone. What it says is checked by ``protocol``, as the listener checks it; here, too, no
answer within the time, or another one than was asked for, ends the command.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from broker_listener.operator.outcome import Outcome, Stopped
from protocol.codec import ProtocolViolation, decode_reply, encode_request
from protocol.messages import (
    MAX_REPLY,
    Absent,
    Draining,
    ExecutorEntry,
    Executors,
    ListExecutors,
    Op,
    Reply,
    Request,
    RequestId,
    SetDraining,
    StopExecutor,
    Stopping,
)

TIMEOUT: Final = 10.0
"""Seconds for an answer; the helper's loop never blocks for as long."""
MAX_PAGES: Final = 10_000
_CREDENTIALS: Final = struct.Struct("=iII")
R = TypeVar("R", bound=Reply)


@dataclass(frozen=True, slots=True)
class Listing:
    """What runs, sorted by user, and whether and how many more may be started."""

    executors: tuple[ExecutorEntry, ...]
    draining: bool
    free: int

    def of(self, user: str) -> ExecutorEntry | None:
        """Give a user's executor."""
        return next((entry for entry in self.executors if entry.user == user), None)


class HelperSocket:
    """An open connection."""

    def __init__(self, path: Path, connection: socket.socket) -> None:
        self._path, self._connection, self._asked = path, connection, 0
        self.pid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        """The process that listens there."""

    def executors(self) -> Listing:
        """Give all that runs."""
        found: list[ExecutorEntry] = []
        after = ""
        for _ in range(MAX_PAGES):
            page = self._ask(ListExecutors(self._id(), after), Executors)
            found += page.executors
            if page.next is None or page.next <= after:
                break
            after = page.next
        return Listing(tuple(found), page.draining, page.free)

    def stop(self, user: str) -> bool:
        """Tell a user's executor to end; say whether there is one."""
        return isinstance(self._ask(StopExecutor(self._id(), user), Stopping, Absent), Stopping)

    def set_draining(self, *, on: bool) -> bool:
        """Begin or end draining; give whether the helper is draining now."""
        return self._ask(SetDraining(self._id(), on), Draining).on

    def _id(self) -> RequestId:
        self._asked += 1
        return RequestId(f"op-{os.getpid()}-{self._asked}")

    def _ask(self, request: Request, *expected: type[R]) -> R:
        try:
            frame = encode_request(request)
        except ProtocolViolation:
            raise Stopped(Outcome.USAGE, "the name is longer than any user's can be") from None
        try:
            self._connection.send(frame)
            answer = self._connection.recv(MAX_REPLY + 1)
        except OSError as error:
            raise Stopped(Outcome.UNREACHABLE, f"{self._path}: {_why(error)}; {_ADVICE}") from None
        if not answer:
            raise Stopped(Outcome.UNREACHABLE, f"{self._path}: the helper hung up; {_ADVICE}")
        try:
            reply = decode_reply(answer)
        except ProtocolViolation as error:
            raise Stopped(Outcome.UNREACHABLE, f"{self._path}: no answer of this version: {error}") from None
        if not isinstance(reply, expected) or reply.id != request.id:
            raise Stopped(Outcome.UNREACHABLE, f"{self._path}: another answer than one to {_op(request)}")
        return reply


@contextmanager
def connected(path: str | Path) -> Iterator[HelperSocket]:
    """Connect to the helper.

    Raises:
        Stopped: it cannot be reached, or this is not root.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(str(path))
        except PermissionError:
            raise Stopped(Outcome.NOT_PERMITTED, f"{path}: is for root alone; run this command as root") from None
        except OSError as error:
            raise Stopped(Outcome.UNREACHABLE, f"{path}: {_why(error)}; {_ADVICE}") from None
        yield HelperSocket(Path(path), connection)


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"the helper did not answer within {TIMEOUT:g} s"
    return (error.strerror or str(error)).lower()


def _op(request: Request) -> str:
    return {ListExecutors: Op.LIST, StopExecutor: Op.STOP, SetDraining: Op.DRAIN}[type(request)]


_ADVICE: Final = "is the root helper running? systemctl status knime-root-helper"
