"""Whose fault it is that executors do not start: one user's, or the host's. Sans-I/O; time is an argument.

The helper says that a start failed, and whether it was before or after the program was to run; why, errno and path, is
in its log alone. A quota that is used up and a disk that is full look the same here, so the rule counts users: where
the starts of two users failed with no start between that worked, it is the host's fault. Executors that ran and died
are a different row: three users', with none between that became ready. The first success ends a row.
"""

from collections.abc import Iterable
from enum import StrEnum
from math import inf
from typing import Final, NamedTuple

from protocol.messages import FailedReason

STRUCK_USERS: Final = 2
DEAD_USERS: Final = 3
RENEWED_WITHIN: Final = 900.0
"""Seconds for which a failure counts: a user who still waits is tried again sooner, ten minutes later at most."""
MAX_USERS: Final = 10_000
"""Users in a row; those that failed longest ago are left out."""


class FaultReason(StrEnum):
    """What fails. The first four are the helper's words."""

    PREPARE_FAILED = FailedReason.PREPARE_FAILED.value
    SPAWN_FAILED = FailedReason.SPAWN_FAILED.value
    SCOPE_UNAVAILABLE = FailedReason.SCOPE_UNAVAILABLE.value
    AUDIT_UNAVAILABLE = FailedReason.AUDIT_UNAVAILABLE.value
    DIED_BEFORE_READY = "died_before_ready"
    """The program ran, and ended before it was connected to the broker."""


USERS_TOO: Final = frozenset({FaultReason.PREPARE_FAILED, FaultReason.SPAWN_FAILED, FaultReason.DIED_BEFORE_READY})
"""What may be a user's own fault; the others are the host's whichever user meets it."""


class Blame(StrEnum):
    """Whose fault a user's last failure is."""

    USER = "user"
    HOST = "host"


class HostFault(NamedTuple):
    """What fails for all, ``since`` the first failure of the row, and of how many users that is known."""

    reason: FaultReason
    since: float
    users: int


class HostChange(NamedTuple):
    """A fault of the host that is new, with the users of its row, or one that is over."""

    fault: HostFault
    over: bool
    users: tuple[str, ...] = ()


class HostFaults:
    """The two rows: starts that failed, and executors that died before they were ready."""

    def __init__(self) -> None:
        self._struck = _Row()
        self._dead = _Row()
        self.starts = 0
        """How many starts there were that said something of the host: they failed, or worked."""
        self.deaths_voided = 0
        """How often deaths were found to be the host's: what a user's count had before then counts no longer."""

    def struck(self, user: str, reason: FaultReason, now: float) -> None:
        """Handle a failed start."""
        self.starts += 1
        needed = 1 if reason is FaultReason.AUDIT_UNAVAILABLE else STRUCK_USERS
        self._struck.add(user, reason, now, needed)

    def started(self, now: float) -> None:
        """Handle a start that worked."""
        self.starts += 1
        self._struck.end(now)

    def died(self, user: str, now: float) -> None:
        """Handle the end of an executor that ran and was not ready yet."""
        self.deaths_voided += self._dead.add(user, FaultReason.DIED_BEFORE_READY, now, DEAD_USERS)

    def ready(self, now: float) -> None:
        """Handle a new executor that became ready."""
        self._dead.end(now)

    def start_fault(self, now: float) -> HostFault | None:
        """Return why the host can start no executor, None if it is not known to be at fault."""
        return self._struck.fault(now)

    def death_fault(self, now: float) -> HostFault | None:
        """Return the fault by which executors die, None if they do not or only some users' do."""
        return self._dead.fault(now)

    def faults(self, now: float) -> list[HostFault]:
        """Return the faults of the host."""
        return [fault for fault in (self.start_fault(now), self.death_fault(now)) if fault is not None]

    def take_changes(self, now: float) -> Iterable[HostChange]:
        """Return what has changed since the last call, each change once."""
        if not (self._struck.is_open or self._dead.is_open):
            return ()
        return [change for row in (self._struck, self._dead) for change in row.take_changes(now)]


class _Row:
    """Users who failed with no success between, by the time of their last failure, the oldest first."""

    def __init__(self) -> None:
        self._users: dict[str, float] = {}
        self._since = inf
        self._reason = FaultReason.PREPARE_FAILED
        self._is_hosts = False
        self._changes: list[HostChange] = []

    @property
    def is_open(self) -> bool:
        """True if there is a user in the row, or a change to tell."""
        return bool(self._users or self._changes)

    def add(self, user: str, reason: FaultReason, now: float, needed: int) -> bool:
        """Add a failure; return True if it makes the row the host's, for which so many users are needed."""
        self._expire(now)
        self._since = min(self._since, now)
        self._users.pop(user, None)
        self._users[user], self._reason = now, reason
        if len(self._users) > MAX_USERS:
            del self._users[next(iter(self._users))]
        if self._is_hosts or len(self._users) < needed:
            return False
        self._is_hosts = True
        self._changes.append(HostChange(self._fault(), over=False, users=tuple(self._users)))
        return True

    def end(self, now: float) -> None:
        """End the row."""
        self._expire(now)
        self._clear()

    def fault(self, now: float) -> HostFault | None:
        """Return the fault if the row is the host's."""
        self._expire(now)
        return self._fault() if self._is_hosts else None

    def take_changes(self, now: float) -> list[HostChange]:
        """Return what has changed since the last call."""
        self._expire(now)
        changes, self._changes = self._changes, []
        return changes

    def _fault(self) -> HostFault:
        return HostFault(self._reason, self._since, len(self._users))

    def _expire(self, now: float) -> None:
        """Leave out failures that were not repeated: nobody waits there, and nothing would ever end the row."""
        if not self._users:
            return
        newest = next(reversed(self._users.values()))
        if now - newest >= RENEWED_WITHIN:
            self._clear()
            return
        while now - self._users[user := next(iter(self._users))] >= RENEWED_WITHIN:
            del self._users[user]

    def _clear(self) -> None:
        if self._is_hosts:
            self._changes.append(HostChange(self._fault(), over=True))
        self._users.clear()
        self._since, self._is_hosts = inf, False
