"""What the listener tells of itself on ``status.sock``, as a checked snapshot.

The listener reads the network, so what it says is not believed further than that it is shown: the answer's size and
time are bounded, every type is checked, a key that this version does not know is passed over, and whoever prints a
text escapes it.
"""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from broker_listener.operator.outcome import Outcome, Stopped
from protocol.settings import SettingsError, settings

PATH: Final = Path("/run/knime-peruser-listener/status.sock")
TIMEOUT: Final = 10.0
MAX_ANSWER: Final = 64 << 20
"""Bytes; a user takes some 200."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connection:
    """One of the listener's connections to the broker; ``state`` is up, down or blocked."""

    state: str
    server: str | None
    since: float
    why: str | None


@dataclass(frozen=True, slots=True)
class HelperSeen:
    """The helper as the listener sees it; None where it does not know."""

    state: str
    since: float
    draining: bool | None
    free: int | None


@dataclass(frozen=True, slots=True)
class Held:
    """What waits in the listener."""

    jobs: int = 0
    bytes: int = 0
    not_parked: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the listener's start."""

    received: int = 0
    handed_over: int = 0
    returned: int = 0


@dataclass(frozen=True, slots=True)
class ListenerUser:
    """One user; ``state`` is one of transitions.py in lower case, ``reason`` the last refusal or failure.

    ``jobs`` counts those that were handed over, each once; ``handed_over`` and ``returned`` count every round of one.
    ``blame`` says whose fault a failure is, "user" or "host"; None if that is no question.
    """

    user: str
    state: str
    since: float
    held: int
    handed_over: int
    returned: int
    parked: int
    reason: str | None
    pid: int | None
    jobs: int | None = None
    """None where a listener of 0.1.0 does not tell."""
    blame: str | None = None


@dataclass(frozen=True, slots=True)
class HostFaultSeen:
    """Why executors do not start on the host, whosever they are, and of how many users that is known."""

    reason: str
    since: float
    users: int


@dataclass(frozen=True, slots=True)
class HostSeen:
    """One of the hosts that share the queue; ``executors_per_user`` as it says itself, None until it has."""

    host: str
    state: str
    free: int
    executors_per_user: str | None
    heard: float | None


@dataclass(frozen=True, slots=True)
class OneOfThem:
    """An executor on one of the hosts; ``state`` is starting or ready."""

    user: str
    host: str
    state: str


@dataclass(frozen=True, slots=True)
class HostsSeen:
    """What the listener knows of the hosts; ``host`` is its own. Both counts are of messages since its start."""

    host: str
    hosts: tuple[HostSeen, ...]
    executors: tuple[OneOfThem, ...]
    namesakes: int
    ignored: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole answer. ``parked`` counts by reason."""

    host: str
    version: str
    pid: int
    since: float
    consuming: bool
    queue: str
    parked_queue: str
    mode: str
    under_way: int
    helper: HelperSeen
    held: Held
    totals: Totals
    users: tuple[ListenerUser, ...]
    cluster: HostsSeen | None = None
    host_faults: tuple[HostFaultSeen, ...] = ()
    connections: Mapping[str, Connection] = field(default_factory=lambda: MappingProxyType({}))
    parked: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    raw: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """The document as it came, for ``--json``."""


def snapshot(path: Path) -> Snapshot:
    """Ask the listener.

    Raises:
        Stopped: it cannot be reached, this account may not ask it, or it answers something else.
    """
    try:
        return decoded(_answer(path))
    except PermissionError:
        why = f"{path}: may be asked by root and members of group knime-operators alone"
        raise Stopped(Outcome.NOT_PERMITTED, why) from None
    except OSError as error:
        why = (error.strerror or str(error) or "no answer in time").lower()
        raise Stopped(Outcome.UNREACHABLE, f"{path}: {why}; {_ADVICE}") from None
    except (ValueError, TypeError, RecursionError) as error:
        why = f"{path}: the listener answers something that is no status: {error}; is it of this version?"
        raise Stopped(Outcome.UNREACHABLE, why) from None


def decoded(answer: bytes) -> Snapshot:
    """Give the snapshot of an answer; raises ValueError or TypeError where it is none."""
    document = json.loads(answer)
    if not isinstance(document, dict) or document.get("v") != 1:
        raise ValueError("another version")
    connections = _table(document.get("connections"))
    totals = _table(document.get("totals"))
    parked = {reason: _count(number) for reason, number in _table(totals.get("parked")).items()}
    parts = {
        "connections": {name: _of(Connection, one) for name, one in connections.items()},
        "helper": _of(HelperSeen, document.get("helper")),
        "held": _of(Held, document.get("held")),
        "totals": _of(Totals, totals),
        "users": tuple(_of(ListenerUser, user) for user in _list(document.get("users"))),
        "cluster": _hosts(document.get("cluster")),
        "host_faults": tuple(_of(HostFaultSeen, fault) for fault in _list(document.get("host_faults", []))),
    }
    flat = {name: document.get(name) for name in _FLAT}
    for name, expected in _FLAT.items():
        if not isinstance(flat[name], expected) or isinstance(flat[name], bool) is not (expected is bool):
            raise TypeError(f"{name} is no {expected}")
    return Snapshot(**flat, **parts, parked=parked, raw=document)  # type: ignore[arg-type]  # they were just checked


def _hosts(value: object) -> HostsSeen | None:
    """Give what is told of the hosts; numbers of executors as text, since one of them may be "all"."""
    if value is None:
        return None
    table = _table(value)
    hosts = [dict(_table(host)) for host in _list(table.get("hosts"))]
    for host in hosts:
        wanted = host.get("executors_per_user")
        host["executors_per_user"] = None if wanted is None else str(wanted)
    executors = [dict(zip(("user", "host", "state"), _list(one), strict=True)) for one in _list(table.get("executors"))]
    return _of(HostsSeen, {**table, "hosts": hosts, "executors": executors})


def _answer(path: Path) -> bytes:
    deadline, parts, size = time.monotonic() + TIMEOUT, [], 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(path))
        while part := connection.recv(1 << 20):
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER:
                raise ValueError("it does not end")
            connection.settimeout(max(0.01, deadline - time.monotonic()))
    return b"".join(parts)


def _of(schema: type[T], table: object) -> T:
    known = {entry.name for entry in fields(schema)}  # type: ignore[arg-type]  # they are dataclasses
    try:
        return settings(schema, {k: v for k, v in _table(table).items() if k in known}, schema.__name__)
    except SettingsError as error:
        raise ValueError(error.faults[0]) from None


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("a table is missing")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("a list is missing")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("a count is no number")
    return value


_FLAT: Final[Mapping[str, Any]] = MappingProxyType(
    {
        **dict.fromkeys(("host", "version", "queue", "parked_queue", "mode"), str),
        **dict.fromkeys(("pid", "under_way"), int),
        "since": int | float,
        "consuming": bool,
    }
)
_ADVICE: Final = "is the listener running? systemctl status knime-broker-listener"
