"""What Prometheus is told, made of what the parts count anyway: the one file here that imports prometheus_client.

Everybody on the host can read it, each user's workflow too: no metric has a user in a label. It changes nothing of what
it looks at. ``exporter`` loads it when it is asked for the first time: it comes with 3 MB of Python's library.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from broker_listener import VERSION
from broker_listener.cluster import ClusterView
from broker_listener.counters import LATENCY_BUCKETS, Counters
from broker_listener.host_fault import FaultReason
from broker_listener.host_messages import HostState
from broker_listener.snapshot import Snapshot
from broker_listener.start_failures import fails_for_long
from broker_listener.transitions import State

PREFIX: Final = "knime_peruser_"


class Metrics:
    """Makes the page, in Prometheus' text format 0.0.4; ``since`` is when the listener was started, Unix time."""

    def __init__(self, look: Callable[[], Snapshot], since: float) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Listener(look, since))

    def page(self) -> bytes:
        """Give the page as things are now."""
        return generate_latest(self._registry)


class _Listener(Collector):
    """Makes the metrics of what the parts count anyway, when somebody asks."""

    def __init__(self, look: Callable[[], Snapshot], since: float = 0.0) -> None:
        self._look = look
        self._since = since

    def collect(self) -> Iterable[Metric]:
        snapshot = self._look()
        yield _gauge("info", "Always 1; the version is a label.", {VERSION: 1}, label="version")
        yield _gauge("start_time_seconds", "When the listener was started, Unix time.", self._since)
        yield from _jobs(snapshot)
        yield from _users(snapshot)
        yield from _broker(snapshot)
        yield from _helper(snapshot)
        yield from _starts(snapshot)
        if snapshot.cluster is not None:
            yield from _cluster(snapshot.cluster)


def _jobs(snapshot: Snapshot) -> Iterator[Metric]:
    settlement, counters = snapshot.settlement, snapshot.settlement.counters
    yield _counter(
        "jobs_received", "Messages delivered by the broker, redelivered and returned ones too.", counters.received
    )
    yield _counter("jobs_returned", "Jobs that came back after they were handed over.", counters.returned)
    yield _counter(
        "jobs_handed_over", "Hand-overs that the broker confirmed, of returned jobs too.", counters.handed_over
    )
    yield _counter("jobs_parked", "Messages put into the parked queue.", counters.parked, label="reason")
    yield _counter("jobs_held_too_long", "Messages that went back after broker.max_hold.", counters.held_too_long)
    again = "Messages that were redelivered ten times and published to their queue again."
    yield _counter("jobs_published_again", again, counters.published_again)
    yield _gauge("jobs_held", "Messages in the listener's hands, those under way among them.", settlement.deliveries)
    yield _gauge("held_bytes", "Their bodies and properties.", settlement.bytes)
    yield _gauge(
        "jobs_not_parked",
        "Messages in the listener's hands that could not be parked; their bodies are not kept.",
        settlement.not_parked,
    )
    yield _gauge("jobs_under_way", "Published messages that the broker has not confirmed yet.", settlement.under_way)
    yield _latency(counters)


def _users(snapshot: Snapshot) -> Iterator[Metric]:
    states = Counter(user.state for user in snapshot.users.values())
    executors = sum(user.executor is not None for user in snapshot.users.values())
    by_name = {state.name.lower(): states[state] for state in State}
    yield _gauge("users", "Users that are known, by state.", by_name, label="state")
    yield _gauge("executors", "Executors of this host that the helper named.", executors)


def _broker(snapshot: Snapshot) -> Iterator[Metric]:
    connections = snapshot.connections
    up = {name: one.state != "down" for name, one in connections.items()}
    losses = {name: one.losses for name, one in connections.items()}
    blocked = connections["publish"].state == "blocked"
    yield _gauge("broker_up", "Whether the connection can be used.", up, label="connection")
    yield _counter("broker_reconnects", "Connections to the broker that were lost.", losses, label="connection")
    yield _gauge("broker_blocked", "Whether the broker takes nothing: a memory or disk alarm.", blocked)
    yield _gauge(
        "consuming", "Whether jobs are taken: 0 at the bound of what is held, or without the queue.", snapshot.consuming
    )


def _helper(snapshot: Snapshot) -> Iterator[Metric]:
    helper = snapshot.helper
    answers = snapshot.settlement.counters.answers
    yield _gauge("helper_up", "Whether the root helper can be asked.", helper.up)
    yield _counter("helper_reconnects", "Connections to the root helper that were lost.", helper.losses)
    yield _counter(
        "helper_answers", "Its answers: running, started, a reason, or none in time.", answers, label="answer"
    )
    if helper.draining is not None:
        yield _gauge("helper_draining", "Whether it starts nothing new, as it said last.", helper.draining)
    if helper.free is not None:
        yield _gauge("helper_free", "How many more executors it had room for when it was connected.", helper.free)


def _starts(snapshot: Snapshot) -> Iterator[Metric]:
    at_fault = {fault.reason for fault in snapshot.host_faults}
    by_reason = {reason.value: reason in at_fault for reason in FaultReason}
    yield _gauge("host_fault", "Whether executors do not start by a fault of the host.", by_reason, label="reason")
    text = "Users whose executor could not be started for an hour, by no fault of the host."
    now = time.monotonic()
    yield _gauge("users_failing", text, sum(fails_for_long(user, now) for user in snapshot.users.values()))


def _cluster(cluster: ClusterView) -> Iterator[Metric]:
    states = Counter(host.state for host in cluster.hosts)
    free = sum(host.free for host in cluster.hosts if host.state is HostState.UP)
    by_name = {state.value: states[state] for state in HostState}
    yield _gauge(
        "hosts", "Hosts that share the queue as this one sees them, itself among them.", by_name, label="state"
    )
    yield _gauge("hosts_free", "How many more executors all of them take.", free)
    yield _counter("host_messages_ignored", "Messages not of the listeners' account, or none at all.", cluster.ignored)
    yield _counter("host_namesakes", "Messages of another host that bears a name in use.", cluster.namesakes)


def _counter(name: str, text: str, value: float | dict[str, int], label: str = "") -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=[label] if label else None)
    return _filled(family, value)


def _gauge(name: str, text: str, value: float | dict[str, int] | dict[str, bool], label: str = "") -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=[label] if label else None)
    return _filled(family, value)


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, value: float | dict[str, int] | dict[str, bool]
) -> CounterMetricFamily | GaugeMetricFamily:
    for label, one in value.items() if isinstance(value, dict) else [(None, value)]:
        family.add_metric([] if label is None else [label], float(one))
    return family


def _latency(counters: Counters) -> Metric:
    family = HistogramMetricFamily(
        PREFIX + "hand_over_seconds", "First hand-overs: from the arrival of the job to the broker's confirm."
    )
    so_far, buckets = 0, []
    for bound, count in zip((*map(str, LATENCY_BUCKETS), "+Inf"), counters.latency, strict=True):
        so_far += count
        buckets.append((bound, so_far))
    family.add_metric([], buckets, counters.latency_sum)
    return family
