"""Bytes to messages and back. Any bytes decode to a checked message or raise ``ProtocolViolation``, nothing else.

Every message has exactly its keys: one more, one less, one twice, a wrong type, a number out of range, NaN, bytes
that are not UTF-8, or a frame over the limit is a violation. Encoding is the decoder's inverse.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, Final, NoReturn, cast

from protocol import messages as m

Checks = Mapping[str, Callable[[object], object]]


class ProtocolViolation(Exception):
    """The bytes are no message of this protocol. The text holds none of them."""


def decode_request(frame: bytes) -> m.Request:
    """Decode what a client asks.

    Raises:
        ProtocolViolation: the frame is no request.
    """
    entries = _object(frame, m.MAX_REQUEST)
    version = _integer(0, 2**31)(entries.get("v"))
    request_id = _request_id(entries.get("id"))
    if version != m.VERSION:
        return m.OtherVersion(id=request_id)
    return cast("m.Request", _message(entries, "op", _REQUESTS))


def decode_reply(frame: bytes) -> m.Reply | m.Exited:
    """Decode what the helper says.

    Raises:
        ProtocolViolation: the frame is neither a reply nor a notice.
    """
    entries = _object(frame, m.MAX_REPLY)
    if _integer(0, 2**31)(entries.get("v")) != m.VERSION:
        raise ProtocolViolation("another protocol version")
    if "notice" in entries:
        return cast("m.Exited", _message(entries, "notice", _NOTICES))
    return cast("m.Reply", _message(entries, "result", _REPLIES))


def encode_request(request: m.Request) -> bytes:
    """Give the one frame of a request.

    Raises:
        ProtocolViolation: it does not fit the frame, or holds what the other side would not decode.
    """
    return _encoded(request, "op", _REQUEST_TAGS, m.MAX_REQUEST)


def encode_reply(reply: m.Reply | m.Exited) -> bytes:
    """Give the one frame of a reply or notice.

    Raises:
        ProtocolViolation: it does not fit the frame, or holds what the other side would not decode.
    """
    if isinstance(reply, m.Exited):
        return _encoded(reply, "notice", _NOTICE_TAGS, m.MAX_REPLY)
    return _encoded(reply, "result", _REPLY_TAGS, m.MAX_REPLY)


def _object(frame: bytes, limit: int) -> dict[str, object]:
    if len(frame) > limit:
        raise ProtocolViolation("frame over the limit")
    try:
        value = _DECODER.decode(frame.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ProtocolViolation("not a JSON object") from None
    if not isinstance(value, dict):
        raise ProtocolViolation("not a JSON object")
    return value


def _message(entries: dict[str, object], key: str, kinds: Mapping[str, tuple[type[Any], Checks]]) -> object:
    tag = entries.get(key)
    if not isinstance(tag, str) or tag not in kinds:
        raise ProtocolViolation(f"unknown {key}")
    kind, checks = kinds[tag]
    if entries.keys() != {"v", key, *checks}:
        raise ProtocolViolation(f"keys that {tag} has not, or lacks")
    return kind(**{name: check(entries[name]) for name, check in checks.items()})


def _encoded(message: object, key: str, tags: Mapping[type[Any], str], limit: int) -> bytes:
    tag = tags.get(type(message))
    if tag is None:
        raise ProtocolViolation("a message that is never sent")
    _, checks = _KINDS[tag]
    entries = {"v": m.VERSION, key: tag}
    entries |= {name: _plain(getattr(message, name)) for name in checks}
    for name, check in checks.items():
        check(entries[name])
    frame = json.dumps(entries, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(frame) > limit:
        raise ProtocolViolation("frame over the limit")
    return frame


def _plain(value: object) -> Any:
    if isinstance(value, tuple):
        return [{field.name: getattr(entry, field.name) for field in fields(entry)} for entry in value]
    return value


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key stands twice")
    return entries


def _bounded_integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("an integer of more than 20 characters")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON (RFC 8259)")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_without_duplicates, parse_int=_bounded_integer, parse_constant=_no_constant
)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)


def _request_id(value: object) -> m.RequestId:
    if not isinstance(value, str) or not _REQUEST_ID.fullmatch(value):
        raise ProtocolViolation("id is not 1 to 64 of A-Z a-z 0-9 -")
    return m.RequestId(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ProtocolViolation("a text is expected")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ProtocolViolation("true or false is expected")
    return value


def _integer(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ProtocolViolation("an integer in range is expected")
        return value

    return check


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProtocolViolation("seconds are expected")
    if not math.isfinite(value) or not 0 <= value <= 2**40:
        raise ProtocolViolation("seconds in range are expected")
    return float(value)


def _or_null(check: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None else check(value)


def _refused_reason(value: object) -> m.RefusedReason:
    if not isinstance(value, str) or value not in _REFUSED:
        raise ProtocolViolation("unknown reason of a refusal")
    return m.RefusedReason(value)


def _failed_reason(value: object) -> m.FailedReason:
    if not isinstance(value, str) or value not in _FAILED:
        raise ProtocolViolation("unknown reason of a failure")
    return m.FailedReason(value)


def _entries(value: object) -> tuple[m.ExecutorEntry, ...]:
    if not isinstance(value, list):
        raise ProtocolViolation("a list of executors is expected")
    return tuple(_entry(item) for item in value)


def _entry(value: object) -> m.ExecutorEntry:
    if not isinstance(value, dict) or value.keys() != _ENTRY.keys():
        raise ProtocolViolation("an executor has other keys")
    checked: dict[str, Any] = {name: check(value[name]) for name, check in _ENTRY.items()}
    return m.ExecutorEntry(**checked)


_REFUSED: Final = frozenset(m.RefusedReason)
_FAILED: Final = frozenset(m.FailedReason)
_UID: Final = _integer(0, 2**32 - 1)
_PID: Final = _integer(1, 2**22)  # PID_MAX_LIMIT of 64-bit kernels, proc(5)
_ID: Final[Checks] = {"id": _request_id}
_EXECUTOR: Final[Checks] = {
    "os_user": _text,
    "uid": _UID,
    "pid": _PID,
    "since": _seconds,
    "cgroup": _or_null(_integer(1, 2**64 - 1)),
}
_ENTRY: Final[Checks] = {"user": _text, **_EXECUTOR}

_REQUESTS: Final[Mapping[str, tuple[type[Any], Checks]]] = MappingProxyType(
    {
        m.Op.ENSURE: (m.EnsureExecutor, {**_ID, "user": _text}),
        m.Op.LIST: (m.ListExecutors, {**_ID, "after": _text}),
        m.Op.STOP: (m.StopExecutor, {**_ID, "user": _text}),
        m.Op.DRAIN: (m.SetDraining, {**_ID, "on": _boolean}),
    }
)
_REPLIES: Final[Mapping[str, tuple[type[Any], Checks]]] = MappingProxyType(
    {
        "running": (m.Running, {**_ID, **_EXECUTOR}),
        "started": (m.Started, {**_ID, **_EXECUTOR}),
        "refused": (m.Refused, {**_ID, "reason": _refused_reason}),
        "failed": (m.Failed, {**_ID, "reason": _failed_reason, "retry_after": _seconds}),
        "executors": (
            m.Executors,
            {**_ID, "executors": _entries, "next": _or_null(_text), "draining": _boolean, "free": _integer(0, 2**31)},
        ),
        "stopping": (m.Stopping, _ID),
        "absent": (m.Absent, _ID),
        "draining": (m.Draining, {**_ID, "on": _boolean}),
    }
)
_NOTICES: Final[Mapping[str, tuple[type[Any], Checks]]] = MappingProxyType(
    {
        "exited": (
            m.Exited,
            {
                "user": _text,
                "uid": _UID,
                "pid": _PID,
                "status": _or_null(_integer(-255, 255)),
                "seq": _integer(1, 2**63),
            },
        ),
    }
)
_KINDS: Final = MappingProxyType({**_REQUESTS, **_REPLIES, **_NOTICES})
_REQUEST_TAGS: Final = MappingProxyType({kind: str(tag) for tag, (kind, _) in _REQUESTS.items()})
_REPLY_TAGS: Final = MappingProxyType({kind: tag for tag, (kind, _) in _REPLIES.items()})
_NOTICE_TAGS: Final = MappingProxyType({kind: tag for tag, (kind, _) in _NOTICES.items()})
