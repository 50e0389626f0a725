"""Which hosts run a user's executor, and which shall: decided on each host alone, from what all have said.

Sans-I/O; time is an argument. It trusts what it is told of other hosts no further than to start one executor too many
or to wait: hosts that have heard the same decide the same, and those that have not agree a message later.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from broker_listener.host_messages import HostState, UserState

MAX_HOSTS: Final = 64
MAX_USERS: Final = 50_000
"""Users of other hosts; how many run here is bounded by our helper."""
MAX_DECLINED: Final = 10_000
DECLINED_FOR: Final = 30.0
"""Seconds for which a host that said it has none, when one was wanted, is asked last."""


@dataclass(slots=True)
class Place:
    """A host that may run executors. ``bit`` is its place in the masks of ``Runs``."""

    name: str
    bit: int
    state: HostState = HostState.UP
    free: int = 0

    @property
    def takes_more(self) -> bool:
        """Whether it starts executors of new users."""
        return self.state is HostState.UP and self.free > 0


@dataclass(slots=True)
class Runs:
    """Where a user's executors are: a bit a host, since there are many users on many hosts."""

    starting: int = 0
    ready: int = 0


class Placement:
    """All hosts and all users who have an executor on one of them, our own host among them."""

    def __init__(self, host: str, executors_per_user: int | None) -> None:
        """``executors_per_user`` None: every host that takes more is to have one of each user."""
        self._wanted = executors_per_user
        self._own = Place(host, 1)
        self._places = {host: self._own}
        self._runs: dict[str, Runs] = {}
        self._declined: dict[tuple[str, str], float] = {}
        """User and host -> until when the host is asked last, the first to end first."""

    def host_is(self, host: str, state: HostState, free: int) -> bool:
        """Take what a host says of itself; False where there are too many hosts for one more."""
        place = self._places.get(host)
        if place is None:
            if len(self._places) >= MAX_HOSTS:
                return False
            place = self._places[host] = Place(host, self._unused_bit())
        place.state, place.free = state, free
        return True

    def host_is_gone(self, host: str) -> frozenset[str]:
        """Forget a host; give the users who had an executor there."""
        place = self._places.pop(host)
        return frozenset(user for user in list(self._runs) if self._set(user, place, UserState.GONE, None))

    def user_is(self, user: str, host: str, state: UserState, now: float) -> bool:
        """Take what a host says of a user's executor there.

        Give whether that matters elsewhere: ``elsewhere`` has changed, or another host has one no more.
        """
        return self._set(user, self._places[host], state, now)

    def only_these(self, host: str, users: set[str]) -> frozenset[str]:
        """Take that the host has no executor but of these users; give those who had one there."""
        place = self._places[host]
        there = [user for user, runs in self._runs.items() if (runs.starting | runs.ready) & place.bit]
        return frozenset(user for user in there if user not in users and self._set(user, place, UserState.GONE, None))

    def elsewhere(self, user: str) -> bool:
        """Tell whether an executor of the user is ready on another host."""
        runs = self._runs.get(user)
        return runs is not None and runs.ready & ~self._own.bit != 0

    def here(self, user: str, now: float) -> bool:
        """Tell whether this host is to run an executor of the user: it does already, or it is its turn."""
        runs = self._runs.get(user, _NOWHERE)
        running = runs.starting | runs.ready
        if running & self._own.bit:
            return True
        if not self._own.takes_more:
            return False
        if self._wanted is None:
            return True
        missing = self._wanted - running.bit_count()
        return missing > 0 and self._own in self._next_hosts(user, runs, now)[:missing]

    def wanted_more(self, user: str) -> bool:
        """Tell whether fewer executors than wanted run, and a host is there that would take one more."""
        runs = self._runs.get(user, _NOWHERE)
        running = runs.starting | runs.ready
        others = any(place.takes_more and not place.bit & running for place in self._places.values())
        return others and (self._wanted is None or running.bit_count() < self._wanted)

    def has_room(self) -> bool:
        """Tell whether some host takes more."""
        return any(place.takes_more for place in self._places.values())

    def places(self) -> list[Place]:
        """Give the hosts, our own first."""
        return list(self._places.values())

    def executors_of(self, host: str) -> Iterator[tuple[str, UserState]]:
        """Give the users who have an executor on the host."""
        bit = self._places[host].bit
        for user, runs in self._runs.items():
            if runs.ready & bit:
                yield user, UserState.READY
            elif runs.starting & bit:
                yield user, UserState.STARTING

    def hosts_of(self, user: str) -> list[str]:
        """Give the hosts on which the user has an executor."""
        runs = self._runs.get(user, _NOWHERE)
        return [place.name for place in self._places.values() if place.bit & (runs.starting | runs.ready)]

    def _next_hosts(self, user: str, runs: Runs, now: float) -> list[Place]:
        """Give the hosts that take more in the order in which they are to start one: rendezvous hashing.

        A host that joins or leaves changes the order of no others, so that a user stays where the user was.
        """
        running = runs.starting | runs.ready
        free = [place for place in self._places.values() if place.takes_more and not place.bit & running]
        until = self._declined
        return sorted(free, key=lambda at: (until.get((user, at.name), now) > now, _weight(user, at.name)))

    def _set(self, user: str, place: Place, state: UserState, now: float | None) -> bool:
        """Change the masks; ``now`` is None where the host is not to be asked last for having none."""
        if state is UserState.WANT:
            return False
        if now is not None:
            self._decline(user, place, state, now)
        runs = self._runs.get(user)
        if runs is None:
            if state is UserState.GONE or (len(self._runs) >= MAX_USERS and place is not self._own):
                return False
            runs = self._runs[user] = Runs()
        before, there = runs.ready & ~self._own.bit, (runs.starting | runs.ready) & place.bit
        runs.starting &= ~place.bit
        runs.ready &= ~place.bit
        match state:
            case UserState.STARTING:
                runs.starting |= place.bit
            case UserState.READY:
                runs.ready |= place.bit
        if not (runs.starting or runs.ready):
            del self._runs[user]
        lost = place is not self._own and there and not (runs.starting | runs.ready) & place.bit
        return bool(lost) or (before != 0) != (runs.ready & ~self._own.bit != 0)

    def _decline(self, user: str, place: Place, state: UserState, now: float) -> None:
        """Note that the host has none now, or has one; it is a hint, so that the oldest may be forgotten."""
        self._declined.pop((user, place.name), None)
        if state is UserState.GONE:
            self._declined[user, place.name] = now + DECLINED_FOR
        while self._declined:
            oldest = next(iter(self._declined))
            if self._declined[oldest] > now and len(self._declined) <= MAX_DECLINED:
                return
            del self._declined[oldest]

    def _unused_bit(self) -> int:
        used = sum(place.bit for place in self._places.values())
        return next(1 << n for n in range(MAX_HOSTS) if not used >> n & 1)


_NOWHERE: Final = Runs()


def _weight(user: str, host: str) -> bytes:
    """Give what orders the hosts of a user; the lowest comes first."""
    # The highest hash is to win: inverted, so that one ascending sort serves both parts of the key.
    return bytes(255 - byte for byte in blake2b(f"{user}\0{host}".encode("ascii"), digest_size=8).digest())
