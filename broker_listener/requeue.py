"""Which deliveries may be given back to the broker, and which must be published again before they are held.

A quorum queue counts redeliveries and drops a message after its delivery limit, 20 unless it is set
(https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling). A lost connection counts, a consumer time-out
does, a killed listener does. So a message that was redelivered ten times is published to its queue, where its count
begins at nothing.

The count is believed only of a delivery that the broker has marked as redelivered: a first delivery has no count of the
broker's, and what it carries is its publisher's. On a classic queue it is the publisher's even then. That costs one
publish, which takes it off.
"""

from typing import Final

from broker_listener.consuming import Delivery
from broker_listener.properties import DELIVERY_COUNT, BadProperties, Properties, parse

MAX_REDELIVERIES: Final = 10
"""Half of the least limit that loses no job: what is published again may fail as often as that."""
_INTEGERS: Final = (b"b", b"B", b"s", b"u", b"I", b"i", b"l", b"L")
_SIGNED: Final = (b"b", b"s", b"I", b"l", b"L")


def may_give_back(delivery: Delivery) -> bool:
    """Return True if giving it back is a way to hand it over.

    One with an expiry is published: held for longer than its time to live, it would vanish when it is given back.
    """
    try:
        properties = parse(delivery.properties)
    except BadProperties:
        return False
    return properties.text("expiration") is None and not (delivery.redelivered and _is_worn_out(properties))


def redelivered_too_often(delivery: Delivery) -> bool:
    """Return True if the broker could drop the message when it is redelivered again and again, for whatever reason."""
    if not delivery.redelivered or DELIVERY_COUNT not in delivery.properties:
        return False
    try:
        return _is_worn_out(parse(delivery.properties))
    except BadProperties:
        return False  # a queue that counts has written the header itself: then it can be read


def _is_worn_out(properties: Properties) -> bool:
    """Take the highest of all: a publisher may have sent the header twice, the broker replaces one of them."""
    counts = [_count(value) for name, value in properties.headers or () if name == DELIVERY_COUNT]
    return max(counts, default=0) >= MAX_REDELIVERIES


def _count(value: bytes) -> int:
    """Read an integer of any size; what is none is taken as too many."""
    kind = value[:1]
    return int.from_bytes(value[1:], "big", signed=kind in _SIGNED) if kind in _INTEGERS else MAX_REDELIVERIES
