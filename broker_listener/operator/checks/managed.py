"""Questions about the broker that its management interface alone answers: flags, limits, bindings, consumers, rights.

Flags that nobody outside knows of KNIME are shown, and judged only where they lose or multiply jobs.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from broker_listener.config import BrokerConfig, parse_url
from broker_listener.operator.checks.finding import Finding, fault, not_asked, ok, warning
from broker_listener.operator.checks.policies import EMPTYING, effective_of, parked
from broker_listener.operator.management import Management, Object, Unavailable
from broker_listener.requeue import MAX_REDELIVERIES

LEAST_DELIVERY_LIMIT: Final = 2 * MAX_REDELIVERIES
"""With less, what the listener publishes again has too few redeliveries left until it can be published."""
DEFAULT_DELIVERY_LIMIT: Final = 20
"""RabbitMQ 4's, rabbitmq.com/docs/quorum-queues."""
Owners = frozenset[int] | None
"""The uids of this host that may consume: the listener's and the running executors'; None where nobody said."""


def findings(broker: BrokerConfig, management: Management | None, owners: Owners) -> Iterator[Finding]:
    """Ask everything, or say that it was not asked."""
    if management is None:
        advice = "--management http://ACCOUNT@HOST:15672 --management-password-file FILE"
        yield not_asked("broker.management", "flags, limits, bindings and other accounts' rights", advice)
        return
    try:
        for question in QUESTIONS:
            yield from question(broker, management)
        yield from consumers(broker, management, owners)
    except Unavailable as error:
        yield fault("broker.management", str(error), "is the plug-in rabbitmq_management on, the account a monitor?")


def queue(broker: BrokerConfig, management: Management) -> Iterator[Finding]:
    """Ask for the queue's flags, and for limits by which it loses jobs."""
    subject, found = "broker.queue_flags", management.queue(broker.queue)
    if found is None:
        yield fault(subject, f"there is no queue {broker.queue}", "KNIME Server makes it")
        return
    effective = effective_of(found)
    limits = dict(effective.keys)
    flags = [name for name in ("durable", "auto_delete", "exclusive") if found.get(name)]
    yield ok(
        subject, f"{found.get('type', 'classic')} queue, {' '.join(flags) or 'no flags'}, limits {limits or 'none'}"
    )
    if not found.get("durable"):
        yield warning(
            "broker.queue_durable", f"{broker.queue} is not durable: a restart of the broker loses jobs", _MAKER
        )
    if found.get("type") == "quorum" and (limit := _delivery_limit(limits, management.version())) is not None:
        yield from _delivery(broker, limit)
    if any(name in limits for name in EMPTYING):
        dropping = ", ".join(f"{name}={limits[name]}" for name in EMPTYING if name in limits)
        whose = ", ".join(effective.policies) or "KNIME Server's own arguments"
        seen = f"{broker.queue} has {dropping} ({whose}): jobs may vanish"
        yield warning("broker.queue_limits", seen, "rabbitmqctl list_policies, list_operator_policies")


def exchange(broker: BrokerConfig, management: Management) -> Iterator[Finding]:
    """Ask whether the exchange leads to the queue by the routing key, and whether anybody else gets copies."""
    if not broker.exchange:
        return
    subject, found = "broker.binding", management.exchange(broker.exchange)
    if found is None:
        yield fault(subject, f"there is no exchange {broker.exchange}", "KNIME Server makes it")
        return
    if found.get("type") != "direct" or not found.get("durable"):
        seen = f"{broker.exchange} is {found.get('type')}, {'durable' if found.get('durable') else 'not durable'}"
        yield warning(
            "broker.exchange_flags", f"{seen}; direct and durable is what KNIME Server makes since 4.13.3", _MAKER
        )
    bindings = management.bindings_of(broker.exchange)
    same = {str(one.get("destination")) for one in bindings if one.get("routing_key") == broker.routing_key}
    if broker.queue not in same:
        seen = f"{broker.exchange} does not lead to {broker.queue} by {broker.routing_key!r}: hand-overs come back"
        yield fault(subject, seen, "broker.routing_key; KNIME Server binds them")
    elif others := sorted(same - {broker.queue}):
        yield warning(subject, f"{', '.join(others)} get a copy of every job", "who bound them? each copy may run, too")
    else:
        yield ok(subject, f"{broker.exchange} leads to {broker.queue} by {broker.routing_key!r}")


def rights(broker: BrokerConfig, management: Management) -> Iterator[Finding]:
    """Ask whether the listener's account has the rights that README names, and no more than it needs."""
    subject = "broker.listener_rights"
    account = parse_url(broker.urls[0]).user
    try:
        found = management.permissions(account)
    except Unavailable:  # the answers before this one came: it is the tag that is missing
        found = None
    if found is None:
        yield not_asked(
            subject, f"rights of {account} are not told", "the monitor's account needs the tag administrator"
        )
    elif ".*" in (wide := [str(found.get(kind)) for kind in ("configure", "write", "read")]):
        yield warning(subject, f"{account} may do everything: {wide}", "README, Installing it, 3: the least that works")
    else:
        yield ok(subject, f"{account}: configure {wide[0]}, write {wide[1]}, read {wide[2]}")


def consumers(broker: BrokerConfig, management: Management, owners: Owners) -> Iterator[Finding]:
    """Ask whether anybody on this host consumes the queue who is neither the listener nor an executor of ours."""
    subject = "broker.consumers"
    found = [one for one in management.consumers() if (one.get("queue") or {}).get("name") == broker.queue]
    here = [one for one in found if _is_here(one)]
    yield ok(subject, f"{len(found)} consumers of {broker.queue}, {len(here)} of them on this host")
    if owners is None:
        yield not_asked(
            f"{subject}_here", "whose the consumers on this host are", "run this as root, with the helper up"
        )
        return
    uids = _uids_by_local_port()
    for one in here:
        details = one.get("channel_details") or {}
        uid = uids.get(int(details.get("peer_port") or 0))
        if uid is not None and uid not in owners:
            seen = f"uid {uid} of this host consumes {broker.queue} as {details.get('user')}: it takes anybody's jobs"
            yield fault(
                f"{subject}_here", seen, f"ss -tnp sport = :{details.get('peer_port')} tells the process; end it"
            )


def _delivery(broker: BrokerConfig, limit: int) -> Iterator[Finding]:
    subject = "broker.delivery_limit"
    seen = f"{broker.queue} is a quorum queue that drops a job after {limit} redeliveries"
    if limit < LEAST_DELIVERY_LIMIT:
        seen = f"{seen}, lost connections count, too: jobs are lost"
        yield fault(subject, seen, f"a delivery-limit of {LEAST_DELIVERY_LIMIT} or more, in queue and policy")
    else:
        yield ok(subject, f"{seen}: the listener publishes what it holds again before that")


def _delivery_limit(limits: dict[str, object], version: str) -> int | None:
    """Give the delivery limit of a quorum queue, None for none; RabbitMQ 4 has one where nobody set any."""
    default = DEFAULT_DELIVERY_LIMIT if int(version.partition(".")[0] or 0) >= 4 else None
    limit = limits.get("delivery-limit", default)
    return limit if isinstance(limit, int) and limit >= 0 else None


def _is_here(consumer: Object) -> bool:
    host = str((consumer.get("channel_details") or {}).get("peer_host") or "")
    try:
        address = ipaddress.ip_address(host)
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))  # the kernel binds to an address of this host alone
    except (ValueError, OSError):
        return False
    return True


def _uids_by_local_port() -> dict[int, int]:
    """Give whose the established connections of this host are, by their own port: proc(5), /proc/net/tcp."""
    found: dict[int, int] = {}
    for table in ("tcp", "tcp6"):
        path = Path("/proc/self/net", table)
        for line in path.read_text("ascii").splitlines()[1:] if path.exists() else ():
            _, local, _, state, _, _, _, uid, *_ = line.split()
            if state == "01":
                found[int(local.rpartition(":")[2], 16)] = int(uid)
    return found


_MAKER: Final = "KNIME Server made it so; nothing to do here but to know it"
QUESTIONS: Final[tuple[Callable[[BrokerConfig, Management], Iterator[Finding]], ...]] = (
    queue,
    exchange,
    parked,
    rights,
)
