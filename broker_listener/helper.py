"""The helper's client: asks for executors over its ZeroMQ socket, and the only file here that imports zmq.

The helper is root's and is trusted to decide; its answers are decoded strictly all the same, and what is late, doubled,
unknown or no answer at all is counted, logged with a bound and ignored. What the helper says is ordered by what caused
what, never by time: one number counts all that is asked and heard, and goes with each. A request is sent once and never
repeated: who asked is told ``HelperAway`` at the end of its time, or at once when the connection is gone, and asks
again itself.
"""

import asyncio
import itertools
import logging
import secrets
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import zmq
import zmq.asyncio

from broker_listener.config import HelperConfig
from broker_listener.limited_log import LimitedLog
from protocol import messages as m
from protocol.codec import ProtocolViolation, decode_reply, encode_request

LOG: Final = logging.getLogger(__name__)
MAX_WAITING: Final = 1000
"""Requests without an answer at most; also what libzmq queues in each direction."""
LIST_AGAIN: Final = 1.0
"""Seconds until a ``list`` that got no answer is asked again."""

EnsureReply = m.Running | m.Started | m.Refused | m.Failed


class Heard(NamedTuple):
    """A reply; ``heard`` is its number among all that was asked and heard."""

    reply: EnsureReply
    heard: int


class HelperAway(Exception):
    """The helper is not connected, or gave no answer in time. Whether it did what was asked is not known."""


class HelperEvents(Protocol):
    """What the helper tells; a call that raises is logged and otherwise without effect."""

    def on_listed(self, executors: Mapping[str, m.ExecutorEntry], draining: bool, free: int, asked: int) -> None:  # noqa: FBT001
        """Take all executors by user: after each connect, before ``on_helper(True)``.

        ``asked`` is the number under which the list was asked for: of what was heard later it says nothing.
        """

    def on_exited(self, exited: m.Exited, heard: int) -> None:
        """Take that an executor ended. A notice can be lost."""

    def on_helper(self, connected: bool) -> None:  # noqa: FBT001
        """Take whether the helper can be asked."""


class HelperClient:
    """A connection to the helper that is made anew whenever it is lost."""

    def __init__(self, config: HelperConfig, events: HelperEvents) -> None:
        self._config = config
        self._events = events
        self._context = zmq.asyncio.Context(io_threads=1)
        self._socket = _socket(self._context)
        self._waiting: dict[str, asyncio.Future[tuple[m.Reply, int]]] = {}
        self._passed = 0
        """How many requests, replies and notices there were."""
        self._tasks: list[asyncio.Task[None]] = []
        self._listing: asyncio.Task[None] | None = None
        self._ids = map("{}-{}".format, itertools.repeat(secrets.token_hex(4)), itertools.count(1))
        self._limited = LimitedLog(LOG)
        self._closing = False
        self.connected = False
        self.ignored = 0
        """Frames that were no answer to anything, since the start."""

    def start(self) -> None:
        """Begin to connect; call it in the loop."""
        monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch(monitor)), loop.create_task(self._receive())]
        self._socket.connect(f"ipc://{self._config.socket}")

    async def ensure(self, user: str) -> Heard:
        """See to it that the user has an executor.

        Raises:
            HelperAway: there is no answer.
        """
        if not self.connected:
            raise HelperAway("the helper is not connected")
        reply, heard = await self._ask(m.EnsureExecutor(self._next_id(), user))
        if not isinstance(reply, EnsureReply):
            raise HelperAway(f"the helper answered ensure with {type(reply).__name__}")
        return Heard(reply, heard)

    async def room(self) -> tuple[bool, int]:
        """Give whether the helper is draining, and how many more executors it takes.

        Raises:
            HelperAway: there is no answer.
        """
        if not self.connected:
            raise HelperAway("the helper is not connected")
        page, _ = await self._ask(m.ListExecutors(self._next_id(), _BEHIND_ALL))
        if not isinstance(page, m.Executors):
            raise HelperAway(f"the helper answered list with {type(page).__name__}")
        return page.draining, page.free

    async def close(self) -> None:
        """End the connection; who waits is told HelperAway."""
        if self._socket.closed:
            return
        self._closing = True
        self._socket.disable_monitor()  # first: libzmq would wait for a reader of its events
        tasks = [*self._tasks, *([self._listing] if self._listing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._gone()
        self._socket.close(linger=0)
        self._context.term()

    def _next_id(self) -> m.RequestId:
        return m.RequestId(next(self._ids))

    async def _ask(self, request: m.EnsureExecutor | m.ListExecutors) -> tuple[m.Reply, int]:
        if len(self._waiting) >= MAX_WAITING:
            raise HelperAway(f"{MAX_WAITING} requests wait for the helper already")
        answer = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = answer
        self._passed += 1
        try:
            # With IMMEDIATE set there is no queue to send to while nobody is connected: then this raises Again.
            await self._socket.send(encode_request(request), zmq.NOBLOCK)
            return await asyncio.wait_for(answer, self._config.timeout)
        except (zmq.Again, TimeoutError, ProtocolViolation) as error:
            raise HelperAway(f"no answer from the helper: {_AWAY.get(type(error), error)}") from None
        finally:
            self._waiting.pop(request.id, None)

    async def _receive(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            try:
                reply = decode_reply(frames[0] if len(frames) == 1 else b"")
            except ProtocolViolation as violation:
                self._ignore(str(violation))
            else:
                self._take(reply)

    def _take(self, reply: m.Reply | m.Exited) -> None:
        self._passed += 1
        if isinstance(reply, m.Exited):
            self._tell("on_exited", reply, self._passed)
        elif (answer := self._waiting.get(reply.id)) is None or answer.done():
            self._ignore("no request waits for it")
        else:
            answer.set_result((reply, self._passed))

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        """Follow libzmq's monitor: its first frame is event and value (zmq_socket_monitor(3))."""
        try:
            while True:
                frames = await monitor.recv_multipart()
                event, _ = struct.unpack("=Hi", frames[0])
                self._gone()
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    # The first message after a connect: a ROUTER cannot notify a peer that has not spoken.
                    self._listing = asyncio.get_running_loop().create_task(self._list())
        finally:
            monitor.close(linger=0)

    async def _list(self) -> None:
        while not self.connected:
            try:
                asked = self._passed
                executors, draining, free = await self._pages()
            except HelperAway as away:
                self._limited.warning("event=list_failed reason=%r", str(away))
                await asyncio.sleep(LIST_AGAIN)
                continue
            self.connected = True
            LOG.info("event=helper_up executors=%d draining=%s free=%d", len(executors), draining, free)
            self._tell("on_listed", executors, draining, free, asked)
            self._tell("on_helper", True)

    async def _pages(self) -> tuple[Mapping[str, m.ExecutorEntry], bool, int]:
        executors: dict[str, m.ExecutorEntry] = {}
        after = ""
        while True:
            page, _ = await self._ask(m.ListExecutors(self._next_id(), after))
            if not isinstance(page, m.Executors):
                raise HelperAway(f"the helper answered list with {page!r}")
            executors |= {entry.user: entry for entry in page.executors}
            if page.next is None:
                return MappingProxyType(executors), page.draining, page.free
            if page.next <= after:
                raise HelperAway("the helper's pages go backwards")
            after = page.next

    def _gone(self) -> None:
        if self._listing is not None:
            self._listing.cancel()
            self._listing = None
        for answer in list(self._waiting.values()):
            if not answer.done():
                answer.set_exception(HelperAway("the helper's connection was lost"))
        if self.connected:
            self.connected = False
            if not self._closing:
                LOG.warning("event=helper_down")
            self._tell("on_helper", False)

    def _ignore(self, why: str) -> None:
        self.ignored += 1
        self._limited.warning("event=frame_ignored reason=%r", why)

    def _tell(self, event: str, *arguments: object) -> None:
        try:
            getattr(self._events, event)(*arguments)
        except Exception as error:  # noqa: BLE001 - one event's bug must not end the connection
            self._limited.warning("event=%s_failed", event, cause=error)


def _socket(context: zmq.asyncio.Context) -> zmq.asyncio.Socket:
    options = {
        zmq.HEARTBEAT_IVL: 5000,
        zmq.HEARTBEAT_TIMEOUT: 15000,
        zmq.IMMEDIATE: 1,
        zmq.LINGER: 0,
        zmq.SNDHWM: MAX_WAITING,
        zmq.RCVHWM: MAX_WAITING,
        zmq.RECONNECT_IVL: 100,
        zmq.RECONNECT_IVL_MAX: 2000,
        zmq.HANDSHAKE_IVL: 2000,
        zmq.MAXMSGSIZE: m.MAX_REPLY,
    }
    socket = context.socket(zmq.DEALER)
    for option, value in options.items():
        socket.setsockopt(option, value)
    return socket


_BEHIND_ALL: Final = "~"
"""Sorts behind every user name: the page is empty."""
_AWAY: Final[Mapping[type[Exception], str]] = {
    zmq.Again: "it is not connected or takes nothing",
    TimeoutError: "its time is over",
}
