"""Bytes to messages and back. Any bytes decode to a checked message or raise ``ProtocolViolation``, nothing else.

Every message has exactly its keys: one more, one less, one twice, a wrong type, a number out of range, NaN, bytes
that are not UTF-8, or a frame over the limit is a violation. What is encoded is what the other side decodes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar, cast

from protocol import messages as m
from protocol.settings import SettingsError, settings

T = TypeVar("T")


class ProtocolViolation(Exception):
    """The bytes are no message of this protocol. The text holds none of them."""


def decode_request(frame: bytes) -> m.Request:
    """Decode what a client asks.

    Raises:
        ProtocolViolation: the frame is no request.
    """
    entries = _entries(frame, m.MAX_REQUEST)
    version = entries.pop("v", None)
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version <= 2**31:
        raise ProtocolViolation("no version")
    if version != m.VERSION:
        return _checked(m.OtherVersion, {"id": entries.get("id")})
    return cast("m.Request", _message(entries, "op", REQUESTS))


def decode_reply(frame: bytes) -> m.Reply | m.Exited:
    """Decode what the helper says.

    Raises:
        ProtocolViolation: the frame is neither a reply nor a notice.
    """
    entries = _entries(frame, m.MAX_REPLY)
    version = entries.pop("v", None)
    if isinstance(version, bool) or version != m.VERSION:
        raise ProtocolViolation("another protocol version")
    if "notice" in entries:
        return cast("m.Exited", _message(entries, "notice", NOTICES))
    return cast("m.Reply", _message(entries, "result", REPLIES))


def encode_request(request: m.Request) -> bytes:
    """Give the one frame of a request.

    Raises:
        ProtocolViolation: it does not fit the frame, or holds what the other side would not decode.
    """
    return _encoded(request, "op", REQUESTS, decode_request)


def encode_reply(reply: m.Reply | m.Exited) -> bytes:
    """Give the one frame of a reply or notice.

    Raises:
        ProtocolViolation: it does not fit the frame, or holds what the other side would not decode.
    """
    key, kinds = ("notice", NOTICES) if isinstance(reply, m.Exited) else ("result", REPLIES)
    return _encoded(reply, key, kinds, decode_reply)


REQUESTS: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        m.Op.ENSURE: m.EnsureExecutor,
        m.Op.LIST: m.ListExecutors,
        m.Op.STOP: m.StopExecutor,
        m.Op.DRAIN: m.SetDraining,
    }
)
REPLIES: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        kind.__name__.lower(): kind
        for kind in (m.Running, m.Started, m.Refused, m.Failed, m.Executors, m.Stopping, m.Absent, m.Draining)
    }
)
NOTICES: Final[Mapping[str, type[Any]]] = MappingProxyType({"exited": m.Exited})


def _entries(frame: bytes, limit: int) -> dict[str, object]:
    if len(frame) > limit:
        raise ProtocolViolation("frame over the limit")
    try:
        value = _DECODER.decode(frame.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ProtocolViolation("not a JSON object") from None
    if not isinstance(value, dict):
        raise ProtocolViolation("not a JSON object")
    return value


def _message(entries: dict[str, object], key: str, kinds: Mapping[str, type[Any]]) -> object:
    tag = entries.pop(key, None)
    if not isinstance(tag, str) or tag not in kinds:
        raise ProtocolViolation(f"unknown {key}")
    return _checked(kinds[tag], entries)


def _checked(kind: type[T], entries: Mapping[str, object]) -> T:
    try:
        return settings(kind, entries, kind.__name__)
    except SettingsError:
        raise ProtocolViolation(f"keys, types or values that {kind.__name__} has not") from None


def _encoded(message: object, key: str, kinds: Mapping[str, type[Any]], check: Callable[[bytes], object]) -> bytes:
    tag = next((tag for tag, kind in kinds.items() if kind is type(message)), None)
    try:
        entries = {"v": m.VERSION, key: tag, **asdict(cast("Any", message))}
        frame = json.dumps(entries, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (ValueError, TypeError):
        raise ProtocolViolation("a value that has no place in JSON") from None
    check(frame)
    return frame


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
