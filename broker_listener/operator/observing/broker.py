"""What the management interface tells of KNIME's exchange, queue, bindings and consumers; read, never changed."""

from collections import Counter
from typing import Any, Final

from broker_listener.config import BrokerConfig
from broker_listener.operator.management import Management, Object

MAX_LISTED: Final = 200


def facts(broker: BrokerConfig, management: Management) -> dict[str, Any]:
    """Give flags, limits, bindings and consumers; raises Unavailable."""
    queue = management.queue(broker.queue)
    exchange = management.exchange(broker.exchange) if broker.exchange else None
    bindings = management.bindings_of(broker.exchange) if broker.exchange else []
    consumers = [one for one in management.consumers() if _of(one, "queue").get("name") == broker.queue]
    return {
        "broker_version": management.version(),
        "exchange": _chosen(exchange, ("name", "type", "durable", "auto_delete", "internal", "arguments")),
        "queue": _chosen(queue, _QUEUE),
        "bindings": [_chosen(one, ("routing_key", "destination", "destination_type")) for one in bindings[:MAX_LISTED]],
        "consumers": dict(Counter(map(_consumer, consumers)).most_common(MAX_LISTED)),
    }


def redeliveries(broker: BrokerConfig, management: Management) -> int:
    """Give how often the broker delivered a message of the jobs queue again, ever; raises Unavailable."""
    queue = management.queue(broker.queue) or {}
    return int(_of(queue, "message_stats").get("redeliver") or 0)


def _consumer(one: Object) -> str:
    details = _of(one, "channel_details")
    ack = "manual ack" if one.get("ack_required") else "automatic ack"
    return f"account {details.get('user')}, prefetch {one.get('prefetch_count')}, {ack}"


def _chosen(found: Object | None, keys: tuple[str, ...]) -> dict[str, Any] | None:
    return None if found is None else {key: found.get(key) for key in keys}


def _of(found: Object, key: str) -> Object:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


_QUEUE: Final = (
    *("name", "type", "durable", "auto_delete", "exclusive", "arguments"),
    *("policy", "effective_policy_definition", "messages", "consumers"),
)
