"""What there is on this host at one moment, put together by user.

Each of the three may be missing: the helper answers root alone, the listener may be down, and a host without scopes
has no figures. What is not known is None, never a guess.
"""

import pwd
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from broker_listener.operator import processes
from broker_listener.operator.helper_socket import Listing, connected
from broker_listener.operator.listener_socket import ListenerUser, Snapshot, snapshot
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.processes import UNKNOWN_USAGE, Usage, usage_of

BETWEEN: Final = 0.25
"""Seconds between the two looks at processor time that one share is made of."""
QUIET: Final = frozenset({"absent", "ready"})
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A user; what begins with an executor's ``pid`` is None where the user has none. ``cpu_share`` is of one core."""

    user: str
    os_user: str | None = None
    uid: int | None = None
    pid: int | None = None
    state: str | None = None
    reason: str | None = None
    blame: str | None = None
    since: float | None = None
    memory: int | None = None
    cpu_seconds: float | None = None
    cpu_share: float | None = None
    jobs: int | None = None
    handed_over: int | None = None
    returned: int | None = None
    held: int | None = None
    parked: int | None = None

    @property
    def is_quiet(self) -> bool:
        """Say whether there is nothing about this user that anybody must see."""
        return self.state in {"ready", "running"} and not self.held


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything. ``why`` says of what is missing why it is."""

    at: float
    helper: Listing | None
    listener: Snapshot | None
    why: Mapping[str, Stopped]
    entries: tuple[Entry, ...]

    @property
    def outcome(self) -> Outcome:
        """Say whether all is well; what this account may not ask is no fault of anybody's."""
        missing = [stopped.outcome for stopped in self.why.values()]
        if Outcome.UNREACHABLE in missing:
            return Outcome.UNREACHABLE
        if len(missing) == _DAEMONS:
            return Outcome.NOT_PERMITTED
        return Outcome.FINDING if self.listener is not None and _is_unwell(self.listener) else Outcome.DONE

    def as_json(self) -> dict[str, object]:
        """Give what ``--json`` prints."""
        helper = self.helper and {"draining": self.helper.draining, "free": self.helper.free}
        return {
            "time": self.at,
            "helper": helper,
            "listener": None if self.listener is None else {k: v for k, v in self.listener.raw.items() if k != "users"},
            "missing": {name: str(stopped) for name, stopped in self.why.items()},
            "users": [asdict(entry) for entry in self.entries],
        }


class Look:
    """Looks at the host, again and again: the share of a core is what was used since the look before."""

    def __init__(self, operator_socket: str, status_socket: Path) -> None:
        self._operator_socket, self._status_socket = operator_socket, status_socket
        self._before: dict[int, tuple[float, float]] = {}

    def once(self) -> Overview:
        """Give what is there now."""
        why: dict[str, Stopped] = {}
        helper = _or_why(self._listing, "helper", why)
        listener = _or_why(lambda: snapshot(self._status_socket), "listener", why)
        entries = _joined(helper, listener)
        return Overview(time.time(), helper, listener, why, tuple(self._with_usage(entry) for entry in entries))

    def with_shares(self) -> Overview:
        """Give what is there now, with shares of a core, for which it has to look twice."""
        first = self.once()
        if any(entry.cpu_seconds is not None for entry in first.entries):
            time.sleep(BETWEEN)
            entries = tuple(self._with_usage(entry) for entry in first.entries)
            return replace(first, entries=entries)
        return first

    def _listing(self) -> Listing:
        with connected(self._operator_socket) as helper:
            return helper.executors()

    def _with_usage(self, entry: Entry) -> Entry:
        now, used = time.monotonic(), UNKNOWN_USAGE if entry.pid is None else usage_of(entry.pid)
        share = self._share(entry.pid, now, used)
        return replace(entry, memory=used.memory, cpu_seconds=used.cpu, cpu_share=share)

    def _share(self, pid: int | None, now: float, used: Usage) -> float | None:
        if pid is None or used.cpu is None:
            return None
        before = self._before.get(pid)
        self._before[pid] = now, used.cpu
        if before is None or before[0] >= now or before[1] > used.cpu:
            return None
        return (used.cpu - before[1]) / (now - before[0])


def _or_why(ask: Callable[[], T], name: str, why: dict[str, Stopped]) -> T | None:
    try:
        return ask()
    except Stopped as stopped:
        why[name] = stopped
        return None


def _is_unwell(listener: Snapshot) -> bool:
    down = [one for one in listener.connections.values() if one.state != "up"]
    return bool(down or listener.host_faults) or not listener.consuming or listener.helper.state != "up"


def _joined(helper: Listing | None, listener: Snapshot | None) -> list[Entry]:
    """Give those who have an executor, or for whom something waits or went wrong, by name."""
    told = {} if listener is None else {user.user: user for user in listener.users}
    found: dict[str, Entry] = {}
    for executor in helper.executors if helper is not None else ():
        entry = Entry(executor.user, executor.os_user, executor.uid, executor.pid, "running", since=executor.since)
        found[executor.user] = _told(entry, told[executor.user]) if executor.user in told else entry
    for user in told.values():
        if user.user not in found and (is_of_interest := _of_interest(user, helper)):
            found[user.user] = is_of_interest
    return sorted(found.values(), key=lambda entry: entry.user)


def _told(entry: Entry, user: ListenerUser) -> Entry:
    """Add what the listener tells of a user who has an executor."""
    return replace(
        entry,
        state=user.state if user.state != "absent" else "running",
        reason=user.reason,
        blame=user.blame,
        **_counts(user),
    )


def _counts(user: ListenerUser) -> dict[str, Any]:
    """Return what the listener counts of a user since its start."""
    return {name: getattr(user, name) for name in ("jobs", "handed_over", "returned", "held", "parked")}


def _of_interest(user: ListenerUser, helper: Listing | None) -> Entry | None:
    """Give a user whom the helper did not name, unless there is nothing to tell of them."""
    pid = user.pid if helper is None else None
    if pid is None and user.state in QUIET and not (user.held or user.parked or user.reason):
        return None
    state = "absent" if user.state == "ready" and pid is None else user.state
    entry = Entry(user.user, None, None, pid, state, user.reason, user.blame, user.since, **_counts(user))
    if pid is None or (uid := processes.uid_of(pid)) is None:
        return entry
    return replace(entry, uid=uid, os_user=_account(uid), since=processes.started_at(pid) or user.since)


def _account(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


_DAEMONS: Final = 2
