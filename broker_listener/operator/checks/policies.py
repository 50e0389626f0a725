"""Policies of the broker that empty queues: what they do to the parked queue and to the queues beside it.

A policy takes effect on a queue of its pattern whenever it is made, and AMQP does not show it. The queues beside the
parked queue come and go, so it is asked, too, what would become of them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from broker_listener import parked_names
from broker_listener.config import BrokerConfig
from broker_listener.operator.checks.finding import Finding, fault, not_asked, ok, warning
from broker_listener.operator.management import Management, Object, Unavailable

LIMITS: Final = ("max-length", "max-length-bytes")
EMPTYING: Final = ("message-ttl", "expires", *LIMITS)
"""Keys by which messages leave a queue that nobody consumes (rabbitmq.com/docs/parameters)."""
OVERFLOW: Final = "overflow"
DELIVERY_LIMIT: Final = "delivery-limit"
_APPLIES: Final = frozenset(("all", "queues", "classic_queues"))


class Effective(NamedTuple):
    """What holds for a queue, its own arguments included, and the names of the policies that have a part in it."""

    keys: Mapping[str, object]
    policies: tuple[str, ...]

    @property
    def emptying(self) -> dict[str, object]:
        """Those by which messages leave it."""
        refuses = str(self.keys.get(OVERFLOW, "drop-head")).startswith("reject-publish")
        names = [name for name in EMPTYING if name in self.keys and not (name in LIMITS and refuses)]
        return {name: self.keys[name] for name in names}

    def __str__(self) -> str:
        """Give what empties it, and by whose word."""
        kept = {**self.emptying, **{name: self.keys[name] for name in _WHERE_TO if name in self.keys}}
        shown = ", ".join(f"{name}={value}" for name, value in kept.items())
        return f"{shown} ({', '.join(self.policies) or 'its own arguments'})"


def parked(broker: BrokerConfig, management: Management) -> Iterator[Finding]:
    """Ask whether messages leave the parked queue, or those beside it, though no command takes them."""
    subject, name = "broker.parked_policy", broker.parked_queue
    beside = (parked_names.marks(name), parked_names.taken(name), parked_names.thousands(name))
    found = {queue: management.queue(queue) for queue in (name, *beside)}
    effective = {queue: effective_of(one) for queue, one in found.items() if one is not None}
    absent = [queue for queue, one in found.items() if one is None]
    if absent:
        try:
            policies = {kind: management.everything(kind) for kind in _KINDS}
        except Unavailable:  # the answers before this one came: it is the tag that is missing
            seen = f"which policies {', '.join(absent)} would have, once there is one, is not told"
            yield not_asked(f"{subject}_to_come", seen, "the monitor's account needs the tag policymaker")
        else:
            effective |= {queue: to_come(queue, policies) for queue in absent}
    yield from _judged(subject, name, effective)


def effective_of(found: Object) -> Effective:
    """Return what holds for a queue that is there."""
    definition = found.get("effective_policy_definition")
    keys = dict(definition) if isinstance(definition, dict) else {}
    for name, value in dict(found.get("arguments") or {}).items():
        if (key := str(name).removeprefix("x-")) != "queue-type":
            keys[key] = _holds(key, keys.get(key), value)
    names = [f"{_KINDS[kind]} {found[field]}" for field, kind in _FIELDS.items() if found.get(field)]
    return Effective(keys, tuple(names) if isinstance(definition, dict) and definition else ())


def to_come(queue: str, policies: Mapping[str, list[Object]]) -> Effective:
    """Return what would hold for a classic queue of ours of this name: of each kind the policy that goes first."""
    keys: dict[str, object] = {}
    names = []
    for kind, listed in policies.items():
        matching = [one for one in listed if one.get("apply-to") in _APPLIES and _matches(one.get("pattern"), queue)]
        if matching:
            first = max(matching, key=lambda one: _number(one.get("priority")))
            names.append(f"{_KINDS[kind]} {first.get('name')}")
            for key, value in dict(first.get("definition") or {}).items():
                keys[key] = _holds(key, keys.get(key), value)
    return Effective(keys, tuple(names))


def _judged(subject: str, parked_queue: str, effective: Mapping[str, Effective]) -> Iterator[Finding]:
    advice = "give the policy a pattern that leaves our queues alone, such as ^(?!knime-), or one of a higher priority"
    empties = {queue: one for queue, one in effective.items() if one.emptying}
    if empties:
        yield fault(subject, "; ".join(f"messages leave {queue}: {one}" for queue, one in empties.items()), advice)
    elif parked_queue in effective and _is_small(effective[parked_queue]):
        one = effective[parked_queue]
        limits = ", ".join(f"{name}={one.keys[name]}" for name in LIMITS if name in one.keys)
        seen = f"{parked_queue} takes no more than {limits} ({', '.join(one.policies)})"
        yield warning(subject, f"{seen}: what cannot be parked is held, then goes back", advice)
    else:
        yield ok(subject, f"nothing but a command takes messages off {parked_queue}")


def _is_small(one: Effective) -> bool:
    return bool(one.policies) and any(_number(one.keys.get(name, 2**30)) < 2**30 for name in LIMITS)


def _holds(key: str, one: object, other: object) -> object:
    """Return which of two values holds: of two limits the smaller, as RabbitMQ has it, else the latter.

    A negative one is no limit.
    """
    if key in (*EMPTYING, DELIVERY_LIMIT) and isinstance(one, int) and isinstance(other, int):
        return min(one, other) if min(one, other) >= 0 else max(one, other)
    return other


def _matches(pattern: object, queue: str) -> bool:
    try:
        return re.search(str(pattern), queue) is not None
    except re.error:  # the broker's dialect is wider: a doubt is a yes, which names the policy
        return True


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0


_KINDS: Final = {"policies": "policy", "operator-policies": "operator policy"}
_FIELDS: Final = {"policy": "policies", "operator_policy": "operator-policies"}
_WHERE_TO: Final = ("dead-letter-exchange", "dead-letter-routing-key")
