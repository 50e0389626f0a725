"""What the benches measure with, on a real broker: that it cannot show a listener better than it is."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.bench import throughput
from tests.bench.instruments import Sink, bodies, publish, url_of
from tests.bench.latency import stream
from tests.bench.open_loop import Latencies, Overdue, Stream, measured, note, through_queue
from tests.bench.relay import BareRelay, Route
from tests.bench.spread import percentile
from tests.bench.throughput import Side
from tests.lab.processes import wait_for
from tests.lab.site import Site

pytestmark = pytest.mark.library


@pytest.fixture
def sink(site: Site) -> Sink:
    """Return the destination's queue."""
    return Sink(site)


@pytest.fixture
def relay(site: Site, sink: Sink) -> Iterator[BareRelay]:
    """Give a bare relay in the listener's place, from the jobs queue to the destination."""
    del sink  # it must be there, or nothing is routed
    made = BareRelay(Route(url_of(site, "listener"), "done"))
    made.start(site.server)
    yield made
    made.stop()


def seen_with_a_stall(site: Site, jobs: Stream, pid: Callable[[], int | None]) -> Latencies:
    """Publish and receive a stream; when a hundred jobs have arrived, let a process stand still for 1.5 s."""
    channel, arrived, stalls = site.server.channel, dict[str, float](), list[threading.Thread]()

    def stall() -> None:
        os.kill(pid() or 0, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(pid() or 0, signal.SIGCONT)

    def turn() -> None:
        channel.connection.process_data_events(time_limit=0.05)
        if len(arrived) >= 100 and not stalls:
            stalls.append(threading.Thread(target=stall))
            stalls[0].start()

    def received(_channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        note(arrived, json.loads(body)["job"], time.monotonic())

    tag = channel.basic_consume("done", received, auto_ack=True)
    seen = measured(url_of(site), jobs, arrived, turn)
    channel.basic_cancel(tag)
    stalls[0].join()
    return seen


def test_stall_counts_for_every_job_that_was_due(site: Site, relay: BareRelay) -> None:
    """A loop that sends the next job when the last one is back would see a stall of 1.5 s once: no omission here."""
    seen = seen_with_a_stall(site, stream(["u"], 100, 400), lambda: relay.pid)
    assert sum(ms > 100 for ms in seen.received) > 100
    assert seen.p99 > 1000


def test_publisher_that_is_late_itself_hides_nothing(site: Site, sink: Sink) -> None:
    """A job that was sent 1.5 s late counts from when it was due, and the lateness is told beside."""
    del sink
    jobs = stream(["u"], 100, 400, "done")
    seen = seen_with_a_stall(site, jobs, lambda: multiprocessing.active_children()[0].pid)
    assert seen.p99 > 1000
    assert percentile(seen.late, 99) > 1000


def test_rate_is_not_the_publishers(site: Site, sink: Sink, relay: BareRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that takes 30 ms a job publishes 33 a second at most: the clock begins when the queue is full."""

    def slowly(*words: object, **named: object) -> None:
        time.sleep(0.03)
        publish(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(throughput, "publish", slowly)
    side = Side(site, sink, lambda: relay.pid)
    throughput._measure(side, site.broker.pids, bodies(["u"], 100))
    assert side.rates[0] > 1 / 0.03


def test_job_lost_or_doubled_on_the_way_is_no_figure(site: Site, sink: Sink) -> None:
    """The count of the destination may be right all the same."""
    first, second = bodies(["u"], 2)
    publish(site, first, routing_key="done")
    publish(site, first, routing_key="done")
    with pytest.raises(RuntimeError, match="of 2 jobs 1 did not arrive, 1 that arrived are too many"):
        sink.expect([first, second])


def test_latency_of_a_lost_job_is_no_figure(site: Site, sink: Sink) -> None:
    """Without a consumer nothing arrives, and the oldest job's age is told."""
    del sink
    with pytest.raises(Overdue, match="0 of 10 jobs arrived") as raised:
        through_queue(site, url_of(site), stream(["u"], 100, 10), wait=0.5)
    assert raised.value.seconds > 0.5


def test_bare_relay_that_cannot_route_loses_no_job(site: Site, sink: Sink) -> None:
    """It ends instead of acking: what it is compared with loses none either."""
    del sink
    relay = BareRelay(Route(url_of(site, "listener"), "nowhere"))
    relay.start(site.server)
    publish(site, json.dumps({"user": "u", "job": "j"}).encode(), delivery_mode=2)
    try:
        wait_for(lambda: relay.exit_status is not None, 20, "the relay's end")
        wait_for(lambda: site.server.depth() == 1, 20, "the job in its queue")
        assert relay.exit_status == 1
    finally:
        relay.stop()
