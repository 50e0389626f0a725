"""Our host among those that share its queue: tells the others what happens here, and hears what happens there.

``hosts`` and ``placement`` decide; here are their clock, their connection, and what they have to know of our helper.
Where the others cannot be heard for longer than a moment, this host serves its users alone: an executor too many is
possible then, a job that nobody runs is not.
"""

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final, NamedTuple, Protocol

from broker_listener.answers import NotHere, WhyNotHere
from broker_listener.broker import connect
from broker_listener.broker_connections import ConnectionState, state_of
from broker_listener.config import ClusterConfig, ListenerConfig
from broker_listener.helper import HelperAway
from broker_listener.host_exchange import HostExchange
from broker_listener.host_messages import HostMessage, HostState, UserState
from broker_listener.hosts import Changes, Hosts
from broker_listener.limited_log import LimitedLog
from broker_listener.link import Link
from broker_listener.placement import MAX_HOSTS

LOG: Final = logging.getLogger(__name__)
TICK: Final = 0.25
PUBLISH_PAUSE: Final = 0.02
"""Seconds between two times that something is said: what happens meanwhile goes together."""
DEAF: Final = "our own messages do not come back: our queue was unbound, or the exchange was deleted and made anew"
JOIN_WITHIN: Final = 5.0
"""Seconds for which a connection that is away starts nobody here who might run elsewhere: it is on its way back."""


class ClusterEvents(Protocol):
    """Whose users they are."""

    def on_elsewhere(self, user: str) -> None:
        """Take that the first executor of the user is ready on another host, or that another host has one no more."""

    def on_wanted(self, user: str) -> None:
        """Take that another host has jobs of the user, and the user's executor is to run here."""


class HostView(NamedTuple):
    """A host as this one sees it: ``heard_at`` is time.monotonic(), None for our own; what is not known is None."""

    host: str
    state: HostState
    free: int
    executors_per_user: int | None
    heard_at: float | None


class ClusterView(NamedTuple):
    """What there is to tell; ``executors`` gives user, host and state of each executor that is known."""

    host: str
    executors_per_user: int
    """0 for all."""
    hosts: tuple[HostView, ...]
    namesakes: int
    ignored: int
    executors: Callable[[], Iterator[tuple[str, str, UserState]]]


class Cluster:
    """The other hosts; ``room`` asks our helper whether it drains and how many more executors it takes."""

    def __init__(
        self, config: ListenerConfig, room: Callable[[], Awaitable[tuple[bool, int]]], events: ClusterEvents
    ) -> None:
        cluster = config.cluster
        self._host, boot = host_of(cluster), secrets.token_hex(8)
        self._wanted = None if isinstance(cluster.executors_per_user, str) else cluster.executors_per_user
        self._heartbeat = cluster.heartbeat
        self._room = room
        self._events = events
        self._hosts = Hosts(self._host, boot, self._wanted, cluster.dead_after)
        queue = f"{cluster.exchange}.{self._host}.{boot}"
        self._exchange = HostExchange(cluster.exchange, queue, lambda: self._link.url.user, self)
        self._link = Link(config.broker.urls, self._exchange, partial(connect, config.broker))
        self._unanswered: set[str] = set()
        """Those whom our helper was asked for, and it has not answered yet."""
        self._draining = self._leaving = self._is_at_fault = False
        self._free = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._published_at = 0.0
        self._scheduled = False
        self._limited = LimitedLog(LOG)

    def start(self) -> None:
        """Begin to connect, and to tell the time; call it in the loop."""
        loop = asyncio.get_running_loop()
        self._link.start()
        self._tasks = [loop.create_task(self._tick()), loop.create_task(self._beat())]
        LOG.info("event=cluster_joining host=%s executors_per_user=%s", self._host, self._wanted or "all")

    def leave(self) -> None:
        """Tell the others that this listener ends, so that they start what it would have."""
        self._leaving = True
        self._say(HostState.LEAVING, 0)
        self._publish()

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - the caller's share of its own time to stop
        """End the connection."""
        for task in self._tasks:
            task.cancel()
        await self._link.close(timeout)

    def elsewhere(self, user: str) -> bool:
        """Tell whether an executor of the user is ready on another host."""
        return self._hosts.placement.elsewhere(user)

    def asks(self, user: str, *, probe: bool = False) -> NotHere | None:
        """Decide whether our helper is to be asked for the user's executor, or else what is the answer.

        The others are told either that it starts here, or that jobs of the user wait here. A ``probe`` is asked for
        here although this host is at fault.
        """
        now = time.monotonic()
        placement = self._hosts.placement
        runs_here = self._hosts.own_state(user) is not None
        may_start = self._hosts.starts_here(user, now) or (probe and self._is_at_fault)
        here = runs_here or (not self._is_joining(now) and may_start)
        if here and not runs_here:
            self._unanswered.add(user)
            self._hosts.own_user(user, UserState.STARTING, now)
        if placement.wanted_more(user) or (not here and placement.elsewhere(user)):
            self._hosts.wants(user)
        self._soon()
        if here:
            return None
        if placement.hosts_of(user):
            return NotHere(WhyNotHere.ON_ANOTHER_HOST)
        return NotHere(WhyNotHere.ANOTHER_HOSTS_TURN if placement.has_room() else WhyNotHere.NO_HOST_FREE)

    def answered(self, user: str, *, executor: bool, full: bool) -> None:
        """Take whether our helper has given the executor that it was asked for, and whether it has no room for one."""
        self._unanswered.discard(user)
        if full:
            self._say(HostState.DRAINING if self._draining else HostState.UP, 0)
        if not executor and self._hosts.own_state(user) is UserState.STARTING:
            self.own_user(user, UserState.GONE)

    def host_fault(self, *, on: bool) -> None:
        """Handle whether this host can start no executor: to the others, and in placing users, it then has no room."""
        if on is not self._is_at_fault:
            self._is_at_fault = on
            self._say(HostState.DRAINING if self._draining else HostState.UP, self._free)

    def own_user(self, user: str, state: UserState) -> None:
        """Tell the others what has become of the user's executor here."""
        self._hosts.own_user(user, state, time.monotonic())
        self._soon()

    def helper_listed(self, *, draining: bool, free: int) -> None:
        """Take that ``own_user`` was called for all whom our helper has listed, and what room it has."""
        self._draining = draining
        self._hosts.own_users_known()
        self._say(HostState.DRAINING if draining else HostState.UP, free)

    def helper_is_away(self) -> None:
        """Take that our helper answers nothing: others start what is asked for here; what runs here goes on.

        They are told so until it answers, since the jobs may be here alone, and nobody else would ask for one.
        """
        self._say(HostState.DRAINING if self._draining else HostState.UP, 0)
        for user in self._unanswered:
            if self._hosts.own_state(user) is UserState.STARTING:
                self.own_user(user, UserState.GONE)
            if self._hosts.placement.wanted_more(user):
                self._hosts.wants(user)

    @property
    def connection(self) -> ConnectionState:
        """How the connection to the others is."""
        return state_of(self._link, self._exchange.blocked_since)

    def view(self) -> ClusterView:
        """Give what there is to tell."""
        hosts, placement = self._hosts, self._hosts.placement
        views = []
        for place in placement.places():
            peer = hosts.peers.get(place.name)
            wanted = (self._wanted or 0) if peer is None else peer.wanted
            heard_at = None if peer is None else peer.heard_at
            views.append(HostView(place.name, place.state, place.free, wanted, heard_at))

        def executors() -> Iterator[tuple[str, str, UserState]]:
            for view in views:
                yield from ((user, view.host, state) for user, state in placement.executors_of(view.host))

        counts = (hosts.namesakes, self._exchange.ignored)
        return ClusterView(self._host, self._wanted or 0, tuple(views), *counts, executors)

    def on_joined(self) -> None:
        """Begin to tell everything."""
        self._hosts.joined(time.monotonic())
        self._soon()

    def on_parted(self) -> None:
        """Forget what is not heard any more."""
        self._follow(self._hosts.parted())

    def on_message(self, message: HostMessage) -> None:
        """Take what another host says."""
        left_out = self._hosts.left_out
        self._follow(self._hosts.heard(message, time.monotonic()))
        if self._hosts.left_out > left_out:
            advice = f"at most {MAX_HOSTS} hosts share a queue"
            self._limited.warning("event=host_left_out host=%s advice=%r", message.host, advice)
        self._soon()

    def _is_joining(self, now: float) -> bool:
        return not self._link.up and now - self._link.since < JOIN_WITHIN

    def _follow(self, changes: Changes) -> None:
        for user in changes.users:
            self._events.on_elsewhere(user)
        for user in changes.wanted:
            self._events.on_wanted(user)

    def _say(self, state: HostState, free: int) -> None:
        self._free = free
        self._hosts.beat(HostState.LEAVING if self._leaving else state, 0 if self._is_at_fault else free)
        self._soon()

    def _soon(self) -> None:
        """Publish once for all that happens in a moment."""
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._published_at + PUBLISH_PAUSE), self._publish)

    def _publish(self) -> None:
        self._scheduled = False
        if self._exchange.takes_more:  # or at a later tick: it is kept, and does not grow
            self._published_at = time.monotonic()
            for message in self._hosts.take_messages(self._published_at):
                self._exchange.publish(message)

    async def _tick(self) -> None:
        while True:
            try:
                now = time.monotonic()
                if self._exchange.blocked_since is not None:
                    self._hosts.nobody_can_speak(now)
                self._follow(self._hosts.time_passed(now))
                if self._hosts.is_deaf(now):
                    self._exchange.drop(DEAF)
                self._publish()
            except Exception as error:  # noqa: BLE001 - the clock goes on whatever one tick met
                self._limited.warning("event=tick_failed", cause=error)
            await asyncio.sleep(TICK)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._heartbeat
            try:
                self._draining, free = await asyncio.wait_for(self._room(), self._heartbeat / 2)
                self._say(HostState.DRAINING if self._draining else HostState.UP, free)
            except (HelperAway, TimeoutError):
                self.helper_is_away()
            except Exception as error:  # noqa: BLE001 - who beats no more is dead to the others
                self._limited.warning("event=beat_failed", cause=error)
            await asyncio.sleep(due - loop.time())


def host_of(config: ClusterConfig) -> str:
    """Give what this host is called among the others."""
    return config.host or socket.gethostname()
