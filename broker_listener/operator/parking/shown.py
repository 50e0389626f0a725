"""Parked messages as lines for people and as JSON. Every text of theirs is escaped here, or by ``as_json``."""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from broker_listener.operator.output import Column, as_json, escaped, moment
from broker_listener.operator.parking.message import Facts
from broker_listener.properties import BadProperties, parse

if TYPE_CHECKING:
    from broker_listener.operator.parking.walk import Taken

IN_DOUBT: Final = "in doubt"
MAX_VALUE: Final = 500
_MOST: Final = 5

Value = str | int | float | bool | None


def columns() -> tuple[Column, ...]:
    """Give the columns of ``row``; of a narrow terminal the last one has what the others leave."""
    parked = Column(f"parked {datetime.now(UTC).astimezone():%z}")
    user, size, detail = Column("user", may_be_cut=True), Column("bytes", right=True), Column("detail", may_be_cut=True)
    return Column("id"), parked, user, Column("reason"), size, detail


def row(taken: "Taken") -> tuple[object, ...]:
    """Give a line of the table: as much of the id as is enough to mean it, the time to the minute."""
    facts = taken.facts
    parked = moment(facts.parked_at)
    detail = f"{IN_DOUBT}: {facts.detail or ''}" if taken.in_doubt else facts.detail
    return facts.id[:8], parked and parked[:16], facts.user, facts.reason, facts.size, detail


def as_object(taken: "Taken") -> dict[str, object]:
    """Give a message for ``list --json``."""
    facts = taken.facts
    return {
        "id": facts.id,
        "user": facts.user,
        "reason": facts.reason,
        "detail": facts.detail,
        "parked_at": facts.parked_at,
        "exchange": facts.exchange,
        "routing_key": facts.routing_key,
        "bytes": facts.size,
        "in_doubt": taken.in_doubt,
    }


def whole_line(taken: "Taken", body_bytes: int) -> str:
    """Give a message for ``show --json``, in a line; headers as they came, in order, a name may be there twice."""
    properties, headers = _read(taken.message.properties)
    whole = {**as_object(taken), "properties": dict(properties)}
    whole["headers"] = [{"name": name, "type": kind, "value": value} for name, kind, value in headers]
    if body_bytes:
        whole["body"] = taken.message.body[:body_bytes].decode("utf-8", "backslashreplace")
    return as_json(whole, indent=None)


def page(taken: "Taken", body_bytes: int) -> str:
    """Give a message as ``show`` prints it."""
    return "\n".join(_lines(taken, body_bytes))


def _lines(taken: "Taken", body_bytes: int) -> Iterator[str]:
    facts = taken.facts
    doubt = "its job was published by a retry that was interrupted, most likely" if taken.in_doubt else None
    said = (
        *(("id", facts.id), ("parked", moment(facts.parked_at)), ("reason", facts.reason), ("detail", facts.detail)),
        *(("user", facts.user), ("exchange", facts.exchange), ("routing key", facts.routing_key)),
        *(("bytes", facts.size), (IN_DOUBT, doubt)),
    )
    for name, value in said:
        if value is not None:
            yield f"{name:<12} {escaped(value, MAX_VALUE)}"
    properties, headers = _read(taken.message.properties)
    for name, held in properties:
        yield f"property     {name}: {escaped(held, MAX_VALUE)}"
    for name, kind, held in headers:
        yield f"header       {escaped(name)}: {escaped(held, MAX_VALUE)} ({kind})"
    if body_bytes:
        body = taken.message.body
        yield f"body         the first {min(body_bytes, len(body))} of {len(body)} bytes:"
        text = body[:body_bytes].decode("utf-8", "backslashreplace")
        yield from (f"  {escaped(line, body_bytes)}" for line in text.split("\n"))


class Summary:
    """What a number of messages have in common; it holds the names of a few."""

    def __init__(self) -> None:
        self.count = 0
        self._reasons: Counter[str] = Counter()
        self._users: Counter[str] = Counter()

    def add(self, facts: Facts) -> None:
        """Count a message."""
        self.count += 1
        _count(self._reasons, facts.reason or "no reason")
        _count(self._users, facts.user or "nobody")

    def __str__(self) -> str:
        """Give it in a line, escaped."""
        number = f"{self.count} message{'' if self.count == 1 else 's'}"
        return f"{number}: {_most(self._reasons)}; of {_most(self._users)}" if self.count else number


def value_of(value: bytes) -> tuple[str, Value]:
    """Give a header's type and value, as well as it can be shown; ``value`` has its type octet first."""
    kind, content = value[:1], value[1:]
    if kind in _INTEGERS:
        return _INTEGERS[kind], int.from_bytes(content, "big", signed=kind in _SIGNED)
    if kind == b"t":
        return "boolean", content != b"\0"
    if kind == b"V":
        return "void", None
    if kind in _FLOATS:
        name, layout = _FLOATS[kind]
        return name, repr(struct.unpack(layout, content)[0])  # as a text: JSON has no NaN
    if kind == b"S":
        return "text", content[4:].decode("utf-8", "backslashreplace")
    return _OTHERS.get(kind, "unknown"), content[4 if kind in _SIZED else 0 :][:MAX_VALUE].hex()


def _read(raw: bytes) -> tuple[list[tuple[str, Value]], Iterable[tuple[str, str, Value]]]:
    """Give properties, and headers as name, type and value."""
    try:
        found = parse(raw)
    except BadProperties:
        return [("unreadable", raw[:MAX_VALUE].hex())], []
    properties = [(name, _property(name, value)) for name, value in found.fields.items()]
    return properties, (
        (name.decode("utf-8", "backslashreplace"), *value_of(value)) for name, value in found.headers or ()
    )


def _property(name: str, value: bytes) -> Value:
    if name in _NUMBERS:
        return int.from_bytes(value, "big")
    return value[1:].decode("utf-8", "backslashreplace")


def _count(counter: Counter[str], name: str) -> None:
    """Count a name, where there are too many of them as one of the others: they are strangers' texts."""
    known = name in counter or len(counter) < _MAX_NAMES
    counter[name[:_NAME] if known else _OTHER] += 1


def _most(counter: Counter[str]) -> str:
    shown = ", ".join(f"{escaped(name, 100)} {count}" for name, count in counter.most_common(_MOST))
    return f"{shown} and others" if len(counter) > _MOST else shown


_MAX_NAMES: Final = 1000
_NAME: Final = 100
_OTHER: Final = "others"
_NUMBERS: Final = frozenset(("delivery_mode", "priority", "timestamp"))
_SIGNED: Final = frozenset((b"b", b"s", b"I", b"l", b"L"))
_INTEGERS: Final = {
    b"b": "int8",
    b"B": "uint8",
    b"s": "int16",
    b"u": "uint16",
    b"I": "int32",
    b"i": "uint32",
    b"l": "int64",
    b"L": "int64",
    b"T": "timestamp",
}
_FLOATS: Final = {b"f": ("float", ">f"), b"d": ("double", ">d")}
_SIZED: Final = frozenset((b"x", b"A", b"F"))
_OTHERS: Final = {b"x": "bytes", b"A": "array", b"F": "table", b"D": "decimal"}
