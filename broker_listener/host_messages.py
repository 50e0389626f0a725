"""What the listeners of several hosts tell each other: bytes to messages and back, strictly bounded.

Whoever may publish to the exchange could have written them; ``hosts`` is told only those that bear the listeners' own
account as ``user_id``, which the broker has checked (RabbitMQ, "Validated User-ID"). Any bytes decode to a message or
to None, nothing else. A later version may add keys and kinds: what is not known here is not looked at.
"""

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple, TypeGuard

from protocol.names import parse_user_name

VERSION: Final = 1
MAX_BYTES: Final = 65536
PAGE: Final = 512
"""Users in one message at most: with the longest names of the grammar it stays below ``MAX_BYTES``."""
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", re.ASCII)
_BOOT: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_MAX_SEQ: Final = 2**53


class HostState(StrEnum):
    """What a host says of itself."""

    UP = "up"
    DRAINING = "draining"
    """It starts nothing; what runs there goes on."""
    LEAVING = "leaving"
    """Its listener ends; its executors may go on."""


class UserState(StrEnum):
    """What a host says of a user."""

    WANT = "want"
    """Jobs of the user are there, and fewer executors than wanted."""
    STARTING = "starting"
    READY = "ready"
    """The user's executor there has a connection to the broker."""
    GONE = "gone"
    """There is none, or none can be had there now."""


class Beat(NamedTuple):
    """A host is alive; ``free`` is how many more executors it takes, ``wanted`` its setting (0 = all hosts)."""

    state: HostState
    free: int
    wanted: int


class Users(NamedTuple):
    """What has changed of users, at most ``PAGE`` of them; or one of ``pages`` pages of all, from 0 on."""

    users: Mapping[str, UserState]
    page: int | None = None
    pages: int = 0


class Hello(NamedTuple):
    """Tell me everything."""


class HostMessage(NamedTuple):
    """A message and who sent it: ``boot`` is another at each start of that listener, ``seq`` grows by one a message."""

    host: str
    boot: str
    seq: int
    content: Beat | Users | Hello


def is_host_name(text: str) -> bool:
    """Tell whether a host may be called so: what a host name holds, at most 64 characters."""
    return _HOST.fullmatch(text) is not None


def encode(message: HostMessage) -> bytes:
    """Give the message's body."""
    content = message.content
    entries: dict[str, object] = {"v": VERSION, "host": message.host, "boot": message.boot, "seq": message.seq}
    match content:
        case Beat():
            entries |= {"kind": "beat", "state": content.state, "free": content.free, "wanted": content.wanted}
        case Hello():
            entries |= {"kind": "hello"}
        case Users(users, None, _) if len(users) == 1:
            ((user, state),) = users.items()
            entries |= {"kind": "user", "user": user, "state": state}
        case Users(users, page, pages):
            entries |= {"kind": "users", "users": dict(users), "page": page, "pages": pages}
    return json.dumps(entries, separators=(",", ":")).encode("ascii")


def decode(body: bytes) -> HostMessage | None:
    """Give the message, None where it is none that is understood here."""
    if len(body) > MAX_BYTES:
        return None
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entries, dict):
        return None
    host, boot, seq = entries.get("host"), entries.get("boot"), entries.get("seq")
    if not (isinstance(host, str) and is_host_name(host) and isinstance(boot, str) and _BOOT.fullmatch(boot)):
        return None
    if not _is_number(seq, _MAX_SEQ):
        return None
    content = _content(entries)
    return None if content is None else HostMessage(host, boot, seq, content)


def _content(entries: Mapping[str, object]) -> Beat | Users | Hello | None:
    match entries.get("kind"):
        case "beat":
            return _beat(entries)
        case "hello":
            return Hello()
        case "user":
            user = entries.get("user")
            return Users(_known({user: entries.get("state")})) if isinstance(user, str) else None
        case "users":
            return _page(entries)
        case _:
            return None


def _beat(entries: Mapping[str, object]) -> Beat | None:
    state, free, wanted = entries.get("state"), entries.get("free"), entries.get("wanted", 0)
    if not (isinstance(state, str) and state in frozenset(HostState) and _is_number(free) and _is_number(wanted)):
        return None
    return Beat(HostState(state), free, wanted)


def _page(entries: Mapping[str, object]) -> Users | None:
    table, page, pages = entries.get("users"), entries.get("page"), entries.get("pages", 0)
    if not isinstance(table, dict) or len(table) > PAGE or not (page is None or _is_number(page)):
        return None
    return Users(_known(table), page, pages) if _is_number(pages) else None


def _known(table: Mapping[str, object]) -> dict[str, UserState]:
    """Give of the users those whose name and state are known here."""
    return {
        user: UserState(state)
        for user, state in table.items()
        if isinstance(state, str) and state in frozenset(UserState)
        if parse_user_name(user, qualified=True) is not None
    }


def _is_number(value: object, limit: int = 2**31) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit
