"""Questions about the hosts that share the queue, as this host's listener hears them; none where it hears nobody."""

from collections.abc import Iterator
from typing import Final

from broker_listener.operator.checks.finding import Finding, Inputs, Question, fault, not_asked, ok, warning
from broker_listener.operator.listener_socket import HostSeen, HostsSeen, Snapshot

SUBJECT: Final = "hosts.others"


def others(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether the others are heard, bear names of their own and have the same settings."""
    listener, enabled = inputs.listener, inputs.configuration.listener.cluster.enabled
    if enabled and not isinstance(listener, Snapshot):
        yield not_asked(SUBJECT, listener, "start the listener, or run this as root")
    elif enabled and isinstance(listener, Snapshot):
        yield from _as_heard(listener, inputs.configuration.listener.cluster.exchange)


def _as_heard(listener: Snapshot, exchange: str) -> Iterator[Finding]:
    cluster, connection = listener.cluster, listener.connections.get("hosts")
    if cluster is None:
        advice = "systemctl restart knime-broker-listener"
        yield fault(SUBJECT, "cluster.enabled is true, and the running listener was started without it", advice)
    elif connection is None or connection.state == "down":
        seen = f"exchange {exchange} cannot be used: {connection.why if connection is not None else 'not known why'}"
        yield fault(SUBJECT, seen, "the listener's account needs the rights of README, 'Installing it', on it")
    else:
        yield from _together(cluster)


def _together(cluster: HostsSeen) -> Iterator[Finding]:
    found = [host for host in cluster.hosts if host.host != cluster.host]
    own = next((host.executors_per_user for host in cluster.hosts if host.host == cluster.host), None)
    if cluster.namesakes:
        seen = f"another host bears a name that is in use, {cluster.host} or one of the others"
        yield fault(SUBJECT, seen, "set cluster.host to another name on one of them, and restart both listeners")
    for host in found:
        if host.executors_per_user not in {None, own}:
            seen = f"{host.host} has executors_per_user {host.executors_per_user}, this host {own}"
            yield warning(SUBJECT, seen, "set cluster.executors_per_user to the same on all hosts")
    if found:
        yield ok(SUBJECT, f"heard: {', '.join(map(_told, found))}")
    else:
        advice = "is cluster.enabled true there, with the same broker, vhost, account and exchange?"
        yield warning(SUBJECT, "no other host is heard", advice)


def _told(host: HostSeen) -> str:
    if host.state != "up":
        return f"{host.host} ({host.state}, starts nobody)"
    return f"{host.host} (room for {host.free} more)" if host.free else f"{host.host} (full, starts nobody)"


QUESTIONS: Final[tuple[Question, ...]] = (others,)
