"""What a parked message says of itself, and which of them are meant.

All of it comes from whoever may publish: bodies, headers, also what only looks like a header of ours. Nothing here
raises because of it, and nothing here is escaped: who prints it does that.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from broker_listener.pacing import digest
from broker_listener.properties import PREFIX, BadProperties, Properties, parse, restored

MAX_READ: Final = 2**20
"""Bytes of a body that is looked into for its user: the parser of a larger one would need many times as much."""
MAX_TEXT: Final = 1000
"""Characters that are kept of a text: thousands of messages are listed at once."""
MIN_ID: Final = 6
"""Characters of an id that are enough to mean it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a parked message; a text is None where its header is not there."""

    id: str
    """As ``job=`` in the listener's log: of the body and the message id."""
    user: str | None
    reason: str | None
    detail: str | None
    parked_at: float | None
    exchange: str | None
    routing_key: str | None
    size: int


@dataclass(frozen=True, slots=True)
class Criteria:
    """Which messages are meant: every condition that is given holds. Times are Unix seconds, neither is included."""

    ids: tuple[str, ...] = ()
    user: str | None = None
    reason: str | None = None
    before: float | None = None
    after: float | None = None
    in_doubt: bool = False

    def match(self, facts: Facts, *, in_doubt: bool) -> bool:
        """Say whether a message is one of them."""
        return (
            (not self.ids or facts.id.startswith(self.ids))
            and self.user in (None, facts.user)
            and self.reason in (None, facts.reason)
            and (in_doubt or not self.in_doubt)
            and self._match_time(facts.parked_at)
        )

    def _match_time(self, parked_at: float | None) -> bool:
        if parked_at is None:  # nobody knows: no age is its
            return self.before is None and self.after is None
        return (self.before is None or parked_at < self.before) and (self.after is None or parked_at > self.after)


class NotRestorable(Exception):
    """The properties that the message had cannot be had from it; the text says why and holds none of them."""


class NotAccepted(Exception):
    """The broker did not take the job; the message is where it was, and not in doubt."""


def facts_of(body: bytes, raw: bytes) -> Facts:
    """Read a message."""
    try:
        properties = parse(raw)
    except BadProperties:
        properties = Properties({}, None)
    said = {name: text_of(value) for name, value in properties.headers or () if name.startswith(PREFIX)}
    return Facts(
        digest(body, properties.text("message_id")).hex(),
        user_of(body),
        said.get(PREFIX + b"reason"),
        said.get(PREFIX + b"detail"),
        _seconds(said.get(PREFIX + b"parked-at")),
        said.get(PREFIX + b"exchange"),
        said.get(PREFIX + b"routing-key"),
        len(body),
    )


def original(raw: bytes, *, counted: bool) -> bytes:
    """Give the properties that a parked message had; ``counted``: its queue adds how often it delivered it.

    Raises:
        NotRestorable: they were not kept whole, or it was not the listener that parked it.
    """
    try:
        properties = parse(raw)
        if PREFIX + b"reason" not in dict(properties.headers or ()):
            raise NotRestorable("it was not parked by the listener")
        return restored(_uncounted(properties).encode() if counted else raw)
    except BadProperties as error:
        raise NotRestorable(str(error)) from None


def fingerprint(body: bytes, raw: bytes) -> str:
    """Give what one parked message is recognised by when it is taken again; equal ones stand for each other."""
    with suppress(BadProperties):  # those no queue can have changed, either
        kept = _uncounted(parse(raw))
        raw = Properties(kept.fields, sorted(kept.headers or ())).encode()  # a quorum queue sorts them, too
    return hashlib.sha256(len(raw).to_bytes(4, "big") + raw + body).hexdigest()


def deliveries(raw: bytes) -> int:
    """Give how often a quorum queue has delivered the message already, as it says itself; 0 where it does not."""
    try:
        headers = dict(parse(raw).headers or ())
    except BadProperties:
        return 0
    return int.from_bytes(headers.get(_COUNT, b"V")[1:], "big")


def text_of(value: bytes) -> str | None:
    """Give a header's long string, None where it is something else."""
    return value[5:].decode("utf-8", "backslashreplace")[:MAX_TEXT] if value[:1] == b"S" else None


def user_of(body: bytes) -> str | None:
    """Give the user that a body names, be it a name or not; None where it names none."""
    if len(body) > MAX_READ:
        return None
    try:
        job = json.loads(body, parse_int=float)  # jobs.py says why
    except (ValueError, RecursionError):
        return None
    user = job.get("user") if isinstance(job, dict) else None
    return user[:MAX_TEXT] if isinstance(user, str) else None


def _uncounted(properties: Properties) -> Properties:
    """Take off what a quorum queue sets at each delivery (rabbitmq.com/docs/quorum-queues#poison-message-handling)."""
    headers = [entry for entry in properties.headers or () if entry[0] != _COUNT]
    return Properties(properties.fields, headers or None)


def _seconds(text: str | None) -> float | None:
    try:
        moment = datetime.fromisoformat(text or "")
        return moment.timestamp() if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


_COUNT: Final = b"x-delivery-count"
