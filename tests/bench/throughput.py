"""Jobs a second out of a full queue, through the listener and through a bare pika relay, in interleaved pairs.

How it could lie, and why it does not:

- It could measure the publisher: a bench that publishes while it measures shows whichever is slower, and its ratio is
  near one whatever the listener does. Here the consumer stands still (SIGSTOP) until every job is in the broker and the
  broker's own work on them is done; the clock begins with SIGCONT.
- It could count what was sent and not what arrived: the clock ends when the destination's queue holds all of them, and
  then each body is read back and must be there once, and nothing may be left unacknowledged at the source.
- It could give one side a head start: both are warm, both stand still on the same broker, with the same prefetch, a
  durable classic queue, persistent jobs; what the broker has pushed into a stopped consumer's socket it has pushed into
  both. There are more jobs than the prefetch, so that not all of them are on their way when the clock begins.
- The machine could change: a pair is measured back to back, the first of a pair changes by turns, and the ratio is
  taken in each pair.
- The executors connect and consume nothing, and hand-overs go to a queue of their own: jobs do not come back. What
  comes back is the subject of ``shared_queue`` and ``executors``.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.bench.figures import Figure
from tests.bench.instruments import TO_SINK, HasServer, Sink, bodies, publish, ready_users, url_of, without_listener
from tests.bench.relay import BareRelay, Route
from tests.lab.broker_node import BrokerNode
from tests.lab.processes import cpu_seconds, wait_for
from tests.lab.site import Site

SIZES: Final = ((300, 25_000, "300 B"), (20_480, 5_000, "20 KiB"))
"""Bytes of a body, jobs, and how the size is called. 5,000 of the large ones are more than max_held_bytes."""


@dataclass(slots=True)
class Side:
    """One of the two that are compared: its process, where jobs are put, where they are counted."""

    site: HasServer
    sink: Sink
    pid: Callable[[], int]
    rates: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def full_queue(site: Site, runs: int) -> list[Figure]:
    """Jobs a second from a queue that was filled while the consumer stood still; the listener and a bare relay."""
    figures: list[Figure] = []
    site.start(listener=TO_SINK)
    with without_listener(site) as bare:
        sinks = Sink(site), Sink(bare)
        users = ready_users(site, sinks[0], 10)
        relay = BareRelay(Route(url_of(bare, "listener"), "done"))
        relay.start(bare.server)
        try:
            for size, jobs, name in SIZES:
                sides = Side(site, sinks[0], lambda: site.listener.pid), Side(bare, sinks[1], lambda: relay.pid)
                for side in sides:  # the first jobs of each are not measured
                    _measure(side, site.broker.pids, bodies(users, 1000, size))
                    side.rates.clear()
                    side.processor.clear()
                for number in range(runs):
                    for side in sides if number % 2 == 0 else sides[::-1]:
                        _measure(side, site.broker.pids, bodies(users, jobs, size))
                for vhost in (site.vhost, bare.vhost):
                    _expect_empty(site.broker, vhost)
                figures += _figures(name, *sides)
            if "event=helper_down" in site.listener.log_text():
                raise RuntimeError("the listener stood still until it took the helper for gone: too busy a machine")
        finally:
            relay.stop()
    return figures


def _measure(side: Side, broker: Sequence[int], jobs: Sequence[bytes]) -> None:
    """Fill the queue while the consumer stands still, let it go, and time it until the last job has arrived."""
    pid = side.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: _state(pid) == "T", 5, "a consumer that stands still")
        for body in jobs:
            publish(side.site, body, delivery_mode=2)
        if side.sink.count():
            raise RuntimeError("a job arrived while the consumer stood still")
        _wait_until_quiet(broker)
        used, began = cpu_seconds(pid), time.monotonic()
    finally:
        os.kill(pid, signal.SIGCONT)
    side.sink.wait(len(jobs), 120)
    seconds = time.monotonic() - began
    side.rates.append(len(jobs) / seconds)
    side.processor.append((cpu_seconds(pid) - used) / len(jobs) * 1e6)
    side.sink.expect(jobs)


def _wait_until_quiet(broker: Sequence[int]) -> None:
    """Wait until the broker has done what it does of itself with what was published."""
    used = [sum(map(cpu_seconds, broker))]

    def quiet() -> bool:
        time.sleep(0.2)  # an interval
        used.append(sum(map(cpu_seconds, broker)))
        return len(used) > 2 and all(later - earlier < 0.03 for earlier, later in pairwise(used[-3:]))

    wait_for(quiet, 20, "a broker that is done with what was published")


def _expect_empty(broker: BrokerNode, vhost: str) -> None:
    """See that no message is left in any queue, those included that were delivered and not acked."""

    def left() -> int:
        lines = broker.ctl("list_queues", "-p", vhost, "--no-table-headers", "messages").split()
        return sum(map(int, lines))

    wait_for(lambda: left() == 0, 20, f"nothing left in {vhost}")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def _figures(name: str, ours: Side, bare: Side) -> list[Figure]:
    ratios = tuple(a / b for a, b in zip(ours.rates, bare.rates, strict=True))
    work = tuple(a / b for a, b in zip(ours.processor, bare.processor, strict=True))
    what = f"full queue, {name}"
    return [
        Figure(f"{what}: through the listener", "per s", tuple(ours.rates), "higher"),
        Figure(f"{what}: through a bare pika relay", "per s", tuple(bare.rates), "higher", bare=True),
        Figure(f"{what}: listener / bare relay, each pair", "times", ratios, "higher", goal=0.9),
        Figure(f"{what}: the listener's processor time a job", "us", tuple(ours.processor)),
        Figure(f"{what}: the bare relay's", "us", tuple(bare.processor), bare=True),
        Figure(f"{what}: processor time, listener / bare relay", "times", work),
    ]
