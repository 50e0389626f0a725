"""One record of the audit log: its bytes, its hash, its place in the chain.

``hash`` is the hex SHA-256 over the record without ``hash`` in its canonical form, ``prev`` the hash of the record
before, so that a changed, removed or reordered record shows. A record is one line of ASCII: what a caller sent is
JSON-escaped and cut, and can neither end a line nor forge one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

FIRST_PREV: Final = "0" * 64
"""``prev`` of the first record of a log; its ``seq`` is 1."""
MAX_TEXT: Final = 80
"""Characters kept of a name that a caller sent."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Credentials of the process that asked, as the kernel gave them (SO_PEERCRED, unix(7))."""

    uid: int
    gid: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened, before it has a place in the chain. ``duration_ms`` in milliseconds; absent values are None."""

    event: str
    request_id: str | None = None
    peer: Peer | None = None
    op: str | None = None
    user: str | None = None
    os_user: str | None = None
    uid: int | None = None
    decision: str | None = None
    reason: str | None = None
    pid: int | None = None
    duration_ms: float | None = None


def sealed(event: Event, *, seq: int, prev: str, time: float, host: str) -> tuple[bytes, str]:
    """Give the record's line, newline included, and its hash. ``time`` in Unix seconds."""
    record: dict[str, object] = asdict(event)
    record |= {"seq": seq, "time": time, "host": host, "prev": prev, "user": shown(event.user)}
    digest = record_hash(record)
    return canonical({**record, "hash": digest}) + b"\n", digest


def shown(text: str | None) -> str | None:
    """Cut what a caller sent to what a record may hold of it."""
    return text if text is None or len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def record_hash(record: Mapping[str, object]) -> str:
    """Give the hash that a record should have; its own ``hash``, if it has one, does not count."""
    return hashlib.sha256(canonical({key: value for key, value in record.items() if key != "hash"})).hexdigest()


def canonical(record: Mapping[str, object]) -> bytes:
    """Give the one spelling of a record that is hashed and written."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def fault_in(record: Mapping[str, object], *, seq: int, prev: str) -> str | None:
    """Say what is wrong with the record that should have this ``seq`` and ``prev``, or None where nothing is."""
    if record.get("seq") != seq:
        return f"seq is {record.get('seq')!r}, {seq} was expected"
    if record.get("prev") != prev:
        return "prev is not the hash of the record before"
    try:
        matches = record.get("hash") == record_hash(record)
    except ValueError:  # NaN and Infinity, which JSON has not but Python's parser takes
        matches = False
    return None if matches else "hash does not match the record"
