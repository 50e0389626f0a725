"""What the management interface tells of KNIME's exchange, queue, bindings and consumers; read, never changed.

Of everything else in the virtual host names and kinds are told, too: what an executor needs besides the jobs queue is
not known. What varies in a name, numbers and the like, becomes ``*``, so that a thousand reply queues are one line.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from broker_listener.config import BrokerConfig
from broker_listener.operator.management import Management, Object

MAX_LISTED: Final = 200
MAX_TEXT: Final = 200


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
        "consumers": _counted(map(_consumer, consumers)),
        "all_exchanges": _counted(map(_exchange, filter(_is_made, management.everything("exchanges")))),
        "all_queues": _counted(map(_queue, management.everything("queues"))),
        "all_bindings": _counted(map(_binding, filter(_leads_out, management.everything("bindings")))),
        "all_consumers": _counted(f"{_of_queue(one)}: {_consumer(one)}" for one in management.consumers()),
    }


def redeliveries(broker: BrokerConfig, management: Management) -> int:
    """Give how often the broker delivered a message of the jobs queue again, ever; raises Unavailable."""
    queue = management.queue(broker.queue) or {}
    return int(_of(queue, "message_stats").get("redeliver") or 0)


def _consumer(one: Object) -> str:
    details = _of(one, "channel_details")
    ack = "manual ack" if one.get("ack_required") else "automatic ack"
    return f"account {details.get('user')}, prefetch {one.get('prefetch_count')}, {ack}"


def _exchange(one: Object) -> str:
    return f"{_pattern(one.get('name'))}: {one.get('type')}, {_flags(one)}"


def _queue(one: Object) -> str:
    arguments = {**_of(one, "effective_policy_definition"), **_of(one, "arguments")}
    limits = "".join(f", {name}={value}" for name, value in sorted(arguments.items()))[:MAX_TEXT]
    return f"{_pattern(one.get('name'))}: {one.get('type', 'classic')}, {_flags(one)}{limits}"


def _binding(one: Object) -> str:
    source, key, to = (_pattern(one.get(name)) for name in ("source", "routing_key", "destination"))
    return f"{source} -- {key} -> {one.get('destination_type')} {to}"


def _is_made(exchange: Object) -> bool:
    """Say whether somebody made the exchange: each virtual host has the default one, and amq's, from its beginning."""
    return not str(exchange.get("name") or "amq.").startswith("amq.")


def _leads_out(binding: Object) -> bool:
    return bool(binding.get("source"))  # each queue is bound to the default exchange


def _of_queue(consumer: Object) -> str:
    return _pattern(_of(consumer, "queue").get("name"))


def _flags(one: Object) -> str:
    named = ("durable", "auto_delete", "exclusive", "internal")
    return " ".join(name for name in named if one.get(name)) or "no flags"


def _pattern(name: object) -> str:
    """Give a name with ``*`` for what was made up for it: UUIDs, long hexadecimals, numbers, RabbitMQ's own names."""
    return _MADE_UP.sub("*", str(name)[:MAX_TEXT])


def _counted(texts: Iterable[str]) -> dict[str, int]:
    return dict(Counter(texts).most_common(MAX_LISTED))


def _chosen(found: Object | None, keys: tuple[str, ...]) -> dict[str, Any] | None:
    return None if found is None else {key: found.get(key) for key in keys}


def _of(found: Object, key: str) -> Object:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


_MADE_UP: Final = re.compile(
    r"(?<=^amq\.gen-).+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?<![0-9a-z])(?=[a-f]*[0-9])[0-9a-f]{8,}(?![0-9a-z])|[0-9]{3,}|(?<![0-9a-z])[0-9]+(?![0-9a-z])",
    re.IGNORECASE,
)
_QUEUE: Final = (
    *("name", "type", "durable", "auto_delete", "exclusive", "arguments"),
    *("policy", "effective_policy_definition", "messages", "consumers"),
)
