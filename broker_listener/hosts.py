"""The hosts that share a queue, as one of them sees the others: who lives, who has whom, what to tell them.

Sans-I/O; messages and monotonic time go in, messages and changes come out. Liveness is the local time at which
something was heard, no clock is compared. Each message has its number: who missed one asks for everything again.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from broker_listener.host_messages import PAGE, Beat, Hello, HostMessage, HostState, Users, UserState
from broker_listener.placement import MAX_USERS, Placement
from broker_listener.repeats import Repeats

SETTLED_AFTER: Final = 1.0
"""Seconds after joining in which no executor is started, since the others have yet to say who runs whom."""
MAX_ASKING_PAUSE: Final = 64.0
MAX_TELLING_PAUSE: Final = 8.0
"""Seconds to which the pauses grow between two times that everything is asked for, or told."""
MAX_FORMER: Final = 4
MAX_PAGES: Final = MAX_USERS // PAGE + 1


class Changes(NamedTuple):
    """What a message or the passing of time has changed for our own host."""

    users: frozenset[str] = frozenset()
    """Of these the first executor is ready on another host, or another host has one no more."""
    wanted: frozenset[str] = frozenset()
    """Of these, whose jobs are on another host, an executor is to be started here, or it runs here and is of use."""


@dataclass(slots=True)
class Peer:
    """Another host; ``boot`` names this run of its listener, ``heard_at`` is when it was last heard, by our clock."""

    boot: str
    seq: int
    heard_at: float
    met_at: float
    wanted: int | None = None
    """Its executors_per_user, 0 for all; None until it has said so."""
    told_all: bool = False
    """Whether this run has said whom it has."""
    complete: bool = False
    """Whether it has said so since a message of it was missed."""
    snapshot: set[str] | None = None
    """The users of the pages that have come so far; None where the first of them have not."""
    next_page: int = 0
    former_boots: list[str] = field(default_factory=list)


class Hosts:
    """What this host knows of the others, and tells them."""

    def __init__(self, host: str, boot: str, executors_per_user: int | None, dead_after: float) -> None:
        """``executors_per_user`` None: all; ``dead_after`` in seconds."""
        self.placement = Placement(host, executors_per_user)
        self.peers: dict[str, Peer] = {}
        self.namesakes = 0
        """Messages of another host that calls itself as we do, or of two that share a name."""
        self.left_out = 0
        """Messages of hosts for which there is no room beside ``placement.MAX_HOSTS`` others."""
        self._host, self._boot, self._wanted = host, boot, executors_per_user or 0
        self._dead_after = dead_after
        self._seq = 0
        self._joined_at: float | None = None
        self._own = Beat(HostState.UP, 0, self._wanted)
        self._users: dict[str, UserState] = {}
        self._beat_due = False
        self._changed: dict[str, UserState] = {}
        self._wants: dict[str, UserState] = {}
        self._hello_wanted = self._all_wanted = self._knows_own = False
        self._asking, self._telling = Repeats(MAX_ASKING_PAUSE), Repeats(MAX_TELLING_PAUSE)
        self._heard_self_at = -inf

    def joined(self, now: float) -> None:
        """Take that the others can be heard and spoken to."""
        self._joined_at = now
        self._hello_wanted = self._all_wanted = self._beat_due = True
        self._asking.begin()
        self._telling.begin()

    def parted(self) -> Changes:
        """Take that nobody is heard any more; what was known of them is not known any more."""
        self._joined_at = None
        self._changed.clear()
        self._wants.clear()
        return self._forget(list(self.peers))

    def beat(self, state: HostState, free: int) -> None:
        """Tell the others that we live."""
        self._own = Beat(state, free, self._wanted)
        self.placement.host_is(self._host, state, free)
        self._beat_due = True

    def own_users_known(self) -> None:
        """Take that ``own_user`` was called for everybody who has an executor here: now all can be told."""
        self._knows_own = True

    def wants(self, user: str) -> None:
        """Tell the others that jobs of the user are here, and fewer executors than wanted."""
        if self._joined_at is not None and len(self._wants) < MAX_USERS:  # or when it is asked for again
            self._wants[user] = UserState.WANT

    def own_user(self, user: str, state: UserState, now: float) -> None:
        """Tell the others what has become of a user's executor here."""
        if state is not UserState.GONE and self._users.get(user) is state:
            return
        self.placement.user_is(user, self._host, state, now)
        if state is UserState.GONE:
            self._users.pop(user, None)
        else:
            self._users[user] = state
        if self._joined_at is not None:  # or with everything
            self._changed[user] = state
        if len(self._changed) > MAX_USERS:
            self._changed.clear()
            self._all_wanted = True

    def own_state(self, user: str) -> UserState | None:
        """Give what the others were told of a user's executor here, None where there is none."""
        return self._users.get(user)

    def heard(self, message: HostMessage, now: float) -> Changes:
        """Take a message of another host."""
        if message.host == self._host:
            self.namesakes += message.boot != self._boot
            self._heard_self_at = now
            return Changes()
        peer = self._met(message, now)
        if peer is None or message.seq <= peer.seq:  # doubled, or late
            return Changes()
        if message.seq > peer.seq + 1:
            peer.complete, peer.snapshot = False, None
        peer.seq, peer.heard_at = message.seq, now
        match message.content:
            case Beat(state, free, wanted):
                self.placement.host_is(message.host, state, free)
                peer.wanted = wanted
            case Hello():
                self._all_wanted = True
            case Users() as content:
                return self._told(message.host, peer, content, now)
        return Changes()

    def time_passed(self, now: float) -> Changes:
        """Take the time: who has not been heard for ``dead_after`` seconds is dead.

        Who has started anew and says for as long not whom it has, since its helper is away, has nobody.
        """
        changes = self._forget([host for host, peer in self.peers.items() if now - peer.heard_at >= self._dead_after])
        changed = changes.users
        for host, peer in self.peers.items():
            if not peer.told_all and now - peer.met_at >= self._dead_after:
                peer.told_all = True
                changed |= self.placement.only_these(host, set())
        return Changes(changed)

    def nobody_can_speak(self, now: float) -> None:
        """Take that the broker takes no messages now: nobody's silence says anything."""
        for peer in self.peers.values():
            peer.heard_at = now
        self._heard_self_at = now

    def is_deaf(self, now: float) -> bool:
        """Tell whether not even what we say ourselves has been heard for ``dead_after``, though it should."""
        return self._joined_at is not None and now - max(self._joined_at, self._heard_self_at) >= self._dead_after

    def starts_here(self, user: str, now: float) -> bool:
        """Tell whether our helper is to be asked for an executor of the user."""
        settled = not self._wanted or self._joined_at is None or now - self._joined_at >= SETTLED_AFTER
        return settled and self.placement.here(user, now)

    def take_messages(self, now: float) -> list[HostMessage]:
        """Give what is to be published now, in this order; what comes too often waits for a later call."""
        if self._joined_at is None:
            return []
        return [HostMessage(self._host, self._boot, self._number(), content) for content in self._contents(now)]

    def _contents(self, now: float) -> Iterator[Beat | Hello | Users]:
        if self._beat_due:
            self._beat_due = False
            yield self._own
        if self._misses_something() and self._asking.due(now):
            self._hello_wanted = False
            yield Hello()
        changed, self._changed = self._changed, {}
        wants, self._wants = self._wants, {}
        yield from map(Users, _pages(changed) + _pages(wants))
        if self._all_wanted and self._knows_own and self._telling.due(now):
            self._all_wanted = False
            pages = _pages(self._users) or [{}]
            yield from (Users(page, number, len(pages)) for number, page in enumerate(pages))

    def _misses_something(self) -> bool:
        """Tell whether everything is to be asked for: an answer, or the question, may have been lost, too."""
        if self._hello_wanted or not all(peer.complete for peer in self.peers.values()):
            return True
        self._asking.begin()
        return False

    def _number(self) -> int:
        self._seq += 1
        return self._seq

    def _met(self, message: HostMessage, now: float) -> Peer | None:
        """Give who sent it, made anew where that is a host, or a run of its listener, that was not known."""
        peer = self.peers.get(message.host)
        if peer is not None and peer.boot == message.boot:
            return peer
        if peer is not None and message.boot in peer.former_boots:  # late, or two that share a name
            self.namesakes += 1
            return None
        if peer is None and not self.placement.host_is(message.host, HostState.UP, 0):
            self.left_out += 1
            return None
        former = [*peer.former_boots[1 - MAX_FORMER :], peer.boot] if peer is not None else []
        # What ran there is thought to run on, since executors outlive a listener, until its pages say otherwise.
        peer = self.peers[message.host] = Peer(message.boot, message.seq - 1, now, now, former_boots=former)
        return peer

    def _told(self, host: str, peer: Peer, content: Users, now: float) -> Changes:
        """Take what a host says of its users."""
        users, place = content.users.items(), self.placement
        changed = frozenset(user for user, state in users if place.user_is(user, host, state, now))
        if peer.snapshot is not None:
            peer.snapshot |= {user for user, state in users if state in (UserState.STARTING, UserState.READY)}
        if content.page is not None:
            changed |= self._paged(host, peer, content)
        return Changes(changed, self._to_start(content.users, now))

    def _to_start(self, users: Mapping[str, UserState], now: float) -> frozenset[str]:
        """Give of the users whom a host wants an executor for those whose it is to run here."""
        wanted = [user for user, state in users.items() if state is UserState.WANT]
        return frozenset(user for user in wanted if self.starts_here(user, now))

    def _paged(self, host: str, peer: Peer, content: Users) -> frozenset[str]:
        """Collect the pages; after the last, whom neither they nor a message in between has named is not there."""
        if content.page == 0:
            peer.snapshot, peer.next_page = set(content.users), 0
        if peer.snapshot is None or content.page != peer.next_page or content.pages > MAX_PAGES:
            peer.snapshot = None
            return frozenset()
        peer.next_page += 1
        if peer.next_page < content.pages:
            return frozenset()
        snapshot, peer.snapshot, peer.told_all, peer.complete = peer.snapshot, None, True, True
        return self.placement.only_these(host, snapshot)

    def _forget(self, hosts: Iterable[str]) -> Changes:
        changed: frozenset[str] = frozenset()
        for host in hosts:
            del self.peers[host]
            changed |= self.placement.host_is_gone(host)
        return Changes(changed)


def _pages(users: Mapping[str, UserState]) -> list[dict[str, UserState]]:
    entries = list(users.items())
    return [dict(entries[first : first + PAGE]) for first in range(0, len(entries), PAGE)]
