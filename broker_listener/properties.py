"""The raw bytes of AMQP basic properties: read a few, change fewer, keep every other bit as the publisher sent it.

They come from whoever may publish, so each length is checked before it counts, nested tables and arrays are skipped
by their length and never entered, and what cannot be walked raises ``BadProperties`` and nothing else. Nothing here
gives a header a Python value: that is how a library changes it (pika makes a double 0.75 an integer 0). The layout is
AMQP 0-9-1's (sections 4.2.5.5 and 4.2.6.1), the field types are those that RabbitMQ reads (rabbit_binary_parser.erl).
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

PREFIX: Final = b"x-peruser-"
"""Begins every header of ours; what a publisher sent under it is dropped when its message is parked."""
MAX_ORIGINAL: Final = 4096
"""Bytes kept of properties that cannot be kept as they are."""
MAX_DETAIL: Final = 512
"""Bytes kept of the detail of a reason."""
DELIVERY_COUNT: Final = b"x-delivery-count"
"""A quorum queue's count of redeliveries, which it sets in what it redelivers."""


class BadProperties(Exception):
    """The bytes are no basic properties, or no original can be had from them. The text holds none of them."""


class RawProperties:
    """Stands in pika's table of content classes for BasicProperties: it carries the bytes and decodes none."""

    INDEX = 60
    __slots__ = ("raw",)

    def __init__(self, raw: bytes = b"\0\0") -> None:
        self.raw = raw

    def decode(self, encoded: bytes, offset: int = 0) -> Self:
        """Keep what follows the body size in a content header."""
        self.raw = encoded[offset:] if offset else encoded
        return self

    def encode(self) -> list[bytes]:
        """Give the bytes as they came."""
        return [self.raw]


@dataclass(frozen=True, slots=True)
class Properties:
    """Properties that were walked: each one present, as its bytes on the wire; the header table as its entries.

    An entry is a name and a value, the value with its type octet. A name may stand more than once.
    """

    fields: dict[str, bytes]
    headers: list[tuple[bytes, bytes]] | None

    def text(self, name: str) -> bytes | None:
        """Give a short string property without its length, None where it is absent."""
        field = self.fields.get(name)
        return None if field is None else field[1:]

    def encode(self) -> bytes:
        """Give the bytes of the properties: ``parse``'s inverse."""
        fields = self.fields
        if self.headers is not None:
            entries = b"".join([b"%c%b%b" % (len(name), name, value) for name, value in self.headers])
            fields = {**fields, "headers": len(entries).to_bytes(4, "big") + entries}
        flags, order = _flags(frozenset(fields))
        return flags + b"".join([fields[name] for name in order])


def parse(raw: bytes) -> Properties:
    """Walk the properties.

    Raises:
        BadProperties: a length or field type that is none, an unknown flag, or bytes that are left over.
    """
    fields: dict[str, bytes] = {}
    headers = None
    try:
        at = 2
        for name, size in _present(int.from_bytes(raw[:2], "big")):
            if name == "headers":
                end = at + 4 + _LENGTH.unpack_from(raw, at)[0]
                headers = _entries(raw, at + 4, end)
            else:
                end = at + (size or 1 + raw[at])
                fields[name] = raw[at:end]
            at = end
    except (IndexError, KeyError, struct.error):
        raise BadProperties("the properties end early or hold a field of an unknown type") from None
    if at != len(raw):
        raise BadProperties("the properties are longer or shorter than their fields")
    return Properties(fields, headers)


def message_id(raw: bytes) -> bytes | None:
    """Give the message id; raises BadProperties."""
    return parse(raw).text("message_id")


def expiration(raw: bytes) -> bytes | None:
    """Give the time to live, milliseconds in ASCII digits, as it was sent; raises BadProperties."""
    return parse(raw).text("expiration")


def content_encoding(raw: bytes) -> bytes | None:
    """Give the content encoding; raises BadProperties."""
    return parse(raw).text("content_encoding")


def user_id(raw: bytes) -> bytes | None:
    """Give the account that the broker verified the publisher to be; raises BadProperties."""
    return parse(raw).text("user_id")


def short_lived(account: str, milliseconds: int) -> bytes:
    """Give the properties of a message between listeners: transient, from our account, gone after that time."""
    lifetime, sender = b"%d" % milliseconds, account.encode()
    fields = {"delivery_mode": _TRANSIENT, "expiration": b"%c%b" % (len(lifetime), lifetime)}
    return Properties({**fields, "user_id": b"%c%b" % (len(sender), sender)}, None).encode()


def handed_over(raw: bytes, account: str) -> bytes:
    """Return the properties with which a job is handed over: ``canHandle`` is true, the rest is as it came.

    But for what ``put_back`` says of another account's ``user_id``, of CC and of BCC.

    Raises:
        BadProperties: they cannot be walked.
    """
    properties = _published_again(raw, account)
    headers = [(name, _TRUE if name == b"canHandle" else value) for name, value in properties.headers or ()]
    if (b"canHandle", _TRUE) not in headers:
        headers.append((b"canHandle", _TRUE))
    return Properties(properties.fields, headers).encode()


def can_handle(raw: bytes) -> bool:
    """Say whether they bear a hand-over's mark, ``canHandle`` true; where it is somewhere else in them, too.

    That steers a pause only, and walking them takes fifty times as long.
    """
    return b"\x09canHandle" + _TRUE in raw


def put_back(raw: bytes, account: str) -> bytes:
    """Return the properties with which a message goes back by being published: as they came, but for four.

    The count of redeliveries is taken off: where no queue sets it, nobody else would, and the message would be
    published for ever. An ``expiration`` stays, and its time begins again, as at each hand-over by publishing: it is
    the publisher's wish that the job ends at some time, and how much of it is over nobody tells.

    ``account`` is ours. A ``user_id`` of another is taken off: the broker would close the channel
    (rabbitmq.com/docs/validated-user-id). CC and BCC are taken off (rabbitmq.com/docs/sender-selected): the first
    publish did what they ask for. Here each round would do it again, without bound, and where the jobs queue is not
    bound any more a copy that arrived somewhere else would be confirmed: the original is acked and the job lost.

    Raises:
        BadProperties: they cannot be walked.
    """
    properties = _published_again(raw, account)
    if properties.headers is None:
        return properties.encode()
    headers = [entry for entry in properties.headers if entry[0] != DELIVERY_COUNT]
    return Properties(properties.fields, headers).encode()


def parked(  # noqa: PLR0913, PLR0917 - the facts that a parked message carries
    raw: bytes, reason: str, detail: str, parked_at: str, exchange: str, routing_key: str, limit: int
) -> bytes:
    """Give the properties with which a message is parked, at most ``limit`` bytes. Raises nothing.

    What would let it expire, travel or be refused (``expiration``, CC and BCC, ``user_id``) is kept under
    ``x-peruser-original-``. Of what does not fit, the detail is cut first, then where the message came from, then the
    original, of which 4 KiB are kept in one header as in the case of properties that cannot be walked.
    """
    why = [_header("reason", reason)]
    where = [_header("parked-at", parked_at), _header("exchange", exchange), _header("routing-key", routing_key)]
    fragment = _fragment(raw, MAX_ORIGINAL)
    try:
        kept = _disarmed(parse(raw))
    except BadProperties:
        kept = fragment
    for base, said in (
        (kept, [*why, *where, _header("detail", detail)]),
        (kept, [*why, *where, _header("detail", detail, 64)]),
        (kept, [*why, *where]),
        (kept, why),
        (fragment, [*why, *where]),
        (_fragment(raw, 512), why),
    ):
        whole = Properties(base.fields, [*(base.headers or ()), *said]).encode()
        if len(whole) <= limit:
            return whole
    return _fragment(b"", 0).encode()


def restored(raw: bytes) -> bytes:
    """Give back the properties that a parked message had, less ``user_id`` and a header table without entries.

    Raises:
        BadProperties: they cannot be walked, or the original was not kept whole.
    """
    parked_properties = parse(raw)
    headers = parked_properties.headers or []
    fields = dict(parked_properties.fields)
    ours = dict(headers)
    if _ORIGINAL + b"properties" in ours:
        raise BadProperties("only a part of the original properties was kept")
    if (mode := ours.get(_ORIGINAL + b"delivery-mode")) is not None:
        fields.pop("delivery_mode", None)
        if mode != _VOID:
            fields["delivery_mode"] = _sized(mode, b"B", 2)[1:]
    if (lifetime := ours.get(_ORIGINAL + b"expiration")) is not None:
        fields["expiration"] = _sized(lifetime, b"S", 5 + 255)[4:]
    kept = [(_UNPARKED.get(name, name), value) for name, value in headers]
    kept = [(name, value) for name, value in kept if not name.startswith(PREFIX)]
    return Properties(fields, kept or None).encode()


def _published_again(raw: bytes, account: str) -> Properties:
    properties = parse(raw)
    if properties.text("user_id") not in (None, account.encode()):
        del properties.fields["user_id"]
    if properties.headers is None:
        return properties
    return Properties(properties.fields, [entry for entry in properties.headers if entry[0] not in _PARKED])


def _disarmed(properties: Properties) -> Properties:
    fields = dict(properties.fields)
    headers = [entry for entry in properties.headers or () if not entry[0].startswith(PREFIX)]
    headers = [(_PARKED.get(name, name), value) for name, value in headers]
    for name, header in (("expiration", b"expiration"), ("user_id", b"user-id")):
        if (text := fields.pop(name, None)) is not None:
            headers.append((_ORIGINAL + header, b"S\0\0\0" + text))
    if (mode := fields.get("delivery_mode")) != _PERSISTENT:
        headers.append((_ORIGINAL + b"delivery-mode", _VOID if mode is None else b"B" + mode))
    return Properties({**fields, "delivery_mode": _PERSISTENT}, headers)


def _fragment(raw: bytes, size: int) -> Properties:
    kept = raw[:size]
    headers = [(_ORIGINAL + b"properties", b"x" + len(kept).to_bytes(4, "big") + kept)]
    return Properties({"delivery_mode": _PERSISTENT}, headers)


def _header(name: str, text: str, size: int = MAX_DETAIL) -> tuple[bytes, bytes]:
    value = text.encode("utf-8", "backslashreplace")[:size].decode("utf-8", "ignore").encode()
    return PREFIX + name.encode(), b"S" + len(value).to_bytes(4, "big") + value


def _sized(value: bytes, kind: bytes, size: int) -> bytes:
    if value[:1] != kind or len(value) > size:
        raise BadProperties("a header of ours has a value that we never give it")
    return value


def _entries(raw: bytes, at: int, end: int) -> list[tuple[bytes, bytes]]:
    entries = []
    while at < end:
        kind = at + 1 + raw[at]
        size = _SIZES[raw[kind]] or 5 + _LENGTH.unpack_from(raw, kind + 1)[0]
        entries.append((raw[at + 1 : kind], raw[kind : kind + size]))
        at = kind + size
    if at != end or end > len(raw):
        raise BadProperties("a header does not end where its table does")
    return entries


@lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, int], ...]:
    if flags & 3:  # bit 0 would announce more flags, which no version of RabbitMQ sends; bit 1 has no meaning
        raise BadProperties("flags of properties that do not exist")
    return tuple((name, size) for name, bit, size in _LAYOUT if flags & bit)


@lru_cache(maxsize=256)
def _flags(names: frozenset[str]) -> tuple[bytes, tuple[str, ...]]:
    flags = sum(bit for name, bit, _ in _LAYOUT if name in names)
    return flags.to_bytes(2, "big"), tuple(name for name, _, _ in _LAYOUT if name in names)


_LENGTH: Final = struct.Struct(">I")
_LAYOUT: Final = (  # flag and size; 0 = a short string, -1 = the header table
    ("content_type", 1 << 15, 0),
    ("content_encoding", 1 << 14, 0),
    ("headers", 1 << 13, -1),
    ("delivery_mode", 1 << 12, 1),
    ("priority", 1 << 11, 1),
    ("correlation_id", 1 << 10, 0),
    ("reply_to", 1 << 9, 0),
    ("expiration", 1 << 8, 0),
    ("message_id", 1 << 7, 0),
    ("timestamp", 1 << 6, 8),
    ("type", 1 << 5, 0),
    ("user_id", 1 << 4, 0),
    ("app_id", 1 << 3, 0),
    ("cluster_id", 1 << 2, 0),
)
_SIZES: Final = {  # of a value with its type octet; 0 = the value has a length of four octets
    **dict.fromkeys(b"SxAF", 0),
    **dict.fromkeys(b"V", 1),
    **dict.fromkeys(b"tbB", 2),
    **dict.fromkeys(b"su", 3),
    **dict.fromkeys(b"Iif", 5),
    **dict.fromkeys(b"D", 6),
    **dict.fromkeys(b"lLdT", 9),
}
_TRUE: Final = b"t\x01"
_VOID: Final = b"V"
_TRANSIENT: Final = b"\x01"
_PERSISTENT: Final = b"\x02"
_ORIGINAL: Final = PREFIX + b"original-"
_PARKED: Final = {b"CC": _ORIGINAL + b"CC", b"BCC": _ORIGINAL + b"BCC"}
_UNPARKED: Final = {kept: name for name, kept in _PARKED.items()}
