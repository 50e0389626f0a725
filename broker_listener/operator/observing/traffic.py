"""Messages into names, types and counts. Pure: a message and its time go in, and no value of a body is ever kept.

A message that is seen again (the same body and message id) was put back by being published, since a copy of each
publish arrives here and of a redelivery none does. Names come from whoever may publish: they are cut, their number is
bounded, and what shows them escapes them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from broker_listener.properties import BadProperties, Properties, can_handle, parse

MAX_NAMES: Final = 200
MAX_NAME: Final = 80
MAX_REMEMBERED: Final = 10_000
MAX_HOPS: Final = 100_000
OTHERS: Final = "(further names)"
_BODY_LIMIT: Final = 2**22
_HEADER_TYPES: Final = dict(
    zip(
        (bytes([letter]) for letter in b"tSFAVTDbBsuIilLfdx"),
        (
            *("boolean", "text", "table", "array", "void", "timestamp", "decimal", "int8", "uint8", "int16"),
            *("uint16", "int32", "uint32", "int64", "int64", "float", "double", "bytes"),
        ),
        strict=True,
    )
)
_JSON_TYPES: Final = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


class Traffic:
    """What was seen so far."""

    def __init__(self) -> None:
        self.messages = 0
        self.properties: Counter[str] = Counter()
        self.headers: Counter[str] = Counter()
        self.body_keys: Counter[str] = Counter()
        self.bodies: Counter[str] = Counter()
        self.can_handle: Counter[str] = Counter()
        self.delivery_modes: Counter[str] = Counter()
        self.put_back: Counter[str] = Counter()
        """What ``canHandle`` was when a message came back, after what it was before."""
        self.hops: list[float] = []
        """Seconds between two sightings of a message."""
        self.largest_body = 0
        self.largest_properties = 0
        self._seen: dict[bytes, tuple[float, str]] = {}

    def take(self, body: bytes, raw: bytes, now: float) -> None:
        """Count a message; ``now`` in seconds of a clock that only goes on."""
        self.messages += 1
        self.largest_body = max(self.largest_body, len(body))
        self.largest_properties = max(self.largest_properties, len(raw))
        message_id = b""
        mark = "absent"
        try:
            properties = parse(raw)
        except BadProperties:
            _count(self.properties, "(cannot be walked)")
        else:
            self._take_properties(properties)
            message_id = properties.text("message_id") or b""
            mark = _mark(properties, raw)
        self.can_handle[mark] += 1
        self._take_body(body)
        self._compare(hashlib.blake2b(message_id + b"\0" + body, digest_size=16).digest(), mark, now)

    def facts(self) -> dict[str, Any]:
        """Give everything as what JSON can hold."""
        hops = sorted(self.hops)
        return {
            "messages": self.messages,
            "properties": dict(self.properties.most_common()),
            "headers": dict(self.headers.most_common()),
            "body_keys": dict(self.body_keys.most_common()),
            "bodies": dict(self.bodies),
            "can_handle": dict(self.can_handle),
            "delivery_modes": dict(self.delivery_modes),
            "put_back": dict(self.put_back),
            "hop_seconds": _quantiles(hops),
            "largest_body": self.largest_body,
            "largest_properties": self.largest_properties,
        }

    def _take_properties(self, properties: Properties) -> None:
        for name in properties.fields:
            _count(self.properties, name)
        if properties.headers is not None:
            _count(self.properties, "headers")
        for header, value in properties.headers or ():
            _count(self.headers, f"{_name(header)}: {_HEADER_TYPES.get(value[:1], 'unknown')}")
        mode = properties.fields.get("delivery_mode")
        self.delivery_modes[{b"\x02": "persistent", None: "absent"}.get(mode, "transient")] += 1

    def _take_body(self, body: bytes) -> None:
        try:
            value = json.loads(body.decode("utf-8")) if len(body) <= _BODY_LIMIT else None
        except UnicodeDecodeError:
            self.bodies["not UTF-8"] += 1
        except (ValueError, RecursionError):
            self.bodies["not JSON"] += 1
        else:
            self.bodies["JSON object" if isinstance(value, dict) else "JSON, no object"] += 1
            for key, inner in value.items() if isinstance(value, dict) else ():
                _count(self.body_keys, f"{key[:MAX_NAME]}: {_JSON_TYPES.get(type(inner), 'null')}")

    def _compare(self, digest: bytes, mark: str, now: float) -> None:
        before = self._seen.pop(digest, None)
        if before is not None:
            self.put_back[f"canHandle {before[1]} -> {mark}"] += 1
            if len(self.hops) < MAX_HOPS:
                self.hops.append(now - before[0])
        self._seen[digest] = now, mark
        if len(self._seen) > MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]


def _count(counter: Counter[str], name: str) -> None:
    counter[name if name in counter or len(counter) < MAX_NAMES else OTHERS] += 1


def _name(name: bytes) -> str:
    return name[:MAX_NAME].decode("utf-8", "backslashreplace")


def _mark(properties: Properties, raw: bytes) -> str:
    if can_handle(raw):
        return "true"
    headers: Mapping[bytes, bytes] = dict(properties.headers or ())
    return {None: "absent", b"t\0": "false"}.get(headers.get(b"canHandle"), "of another type")


def _quantiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    at = {"median": 0.5, "p95": 0.95, "longest": 1.0}
    return {name: round(values[min(int(part * len(values)), len(values) - 1)], 6) for name, part in at.items()}
