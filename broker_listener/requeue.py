"""Which deliveries may be given back: in mode "requeue", as the way to hand a job over, and after ``max_hold``.

A job with an expiry would wait on with its whole life time begun anew, and a quorum queue drops a message after its
delivery limit, 20 unless it is set (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling): in mode
"requeue" both are published, after ``max_hold`` the second is.
"""

from typing import Final

from broker_listener.consuming import Delivery
from broker_listener.properties import BadProperties, parse

MAX_REDELIVERIES: Final = 10


def may_give_back(delivery: Delivery) -> bool:
    """Say whether giving it back is a way to hand it over."""
    try:
        properties = parse(delivery.properties)
    except BadProperties:
        return False
    if properties.text("expiration") is not None:
        return False
    return _redeliveries(dict(properties.headers or ())) < MAX_REDELIVERIES


def redelivered_too_often(delivery: Delivery) -> bool:
    """Say whether giving it back, for whatever reason, could lose it; not said of what cannot be read."""
    try:
        properties = parse(delivery.properties)
    except BadProperties:
        return False
    return _redeliveries(dict(properties.headers or ())) >= MAX_REDELIVERIES


def _redeliveries(headers: dict[bytes, bytes]) -> int:
    """Read the broker's own count, an integer of any size; what is none of these is taken as too many."""
    value = headers.get(b"x-delivery-count")
    if value is None:
        return 0
    kind = value[:1]
    if kind not in (b"b", b"B", b"s", b"u", b"I", b"i", b"l", b"L"):
        return MAX_REDELIVERIES
    return int.from_bytes(value[1:], "big", signed=kind in (b"b", b"s", b"I", b"l", b"L"))
