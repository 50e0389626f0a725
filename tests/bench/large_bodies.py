"""Four and fourteen bodies of 120 MiB among other users' jobs, through the listener and before a bare pika consumer.

How it could lie: other users' jobs are due at fixed times, 20 a second, from before the first body on, for 10 and 20 s,
so that a stall of seconds counts for every job that it held up and its length is the worst latency; a bench that sends
one job and waits could meet the gap between two bodies. A listener that only puts the bodies off would look good: how
many are parked when the small jobs end stands beside. The control has the same bodies from the same publisher and a
pika consumer that acks them and relays the small jobs: what the broker and the library need for such bodies is in both.
Memory is the kernel's peak since the bench began (VmHWM), not a sample. The bodies are no jobs for the listener (larger
than max_body): it parks them, and the parked queue's bound of 1 GiB is reached by fourteen.
"""

import multiprocessing
import time
from pathlib import Path
from typing import Final, NamedTuple

import pika

from tests.bench.figures import Figure
from tests.bench.ground import NotHere
from tests.bench.instruments import TO_SINK, Place, Sink, forget_peak, peak, ready_users, url_of, without_listener
from tests.bench.latency import stream
from tests.bench.open_loop import Overdue, through_queue
from tests.bench.relay import BareRelay, Route
from tests.lab.broker_node import JOBS_EXCHANGE
from tests.lab.processes import wait_for
from tests.lab.site import Site

SIZE: Final = 120 * 2**20
RATE: Final = 20.0
SECONDS: Final = {4: 10, 14: 20}
"""For which the small jobs come."""
WAIT: Final = 30.0
"""Seconds that the last small job is waited for."""
LARGEST: Final = 262_144
NEEDED: Final = 8 * 2**30


class Run(NamedTuple):
    """Seconds of the latest small job, the consumer's peak in MB; ``is_cut``: it had not arrived by then."""

    latest: float
    memory: float
    is_cut: bool = False


def four_large_bodies(site: Site, runs: int) -> list[Figure]:
    """Others' jobs while 4 bodies of 120 MiB come: the latest one, and the memory; beside a bare pika consumer."""
    return _measured(site, 4, min(runs, 2))


def fourteen_large_bodies(site: Site, _runs: int) -> list[Figure]:
    """Others' jobs while 14 bodies of 120 MiB come, more than the parked queue takes; beside a bare pika consumer."""
    return _measured(site, 14, 1)


def _measured(site: Site, count: int, runs: int) -> list[Figure]:
    _expect_room()
    site.start(listener=TO_SINK)
    ours, alone, parked = list[Run](), list[Run](), list[float]()
    with without_listener(site) as bare:
        sink, _ = Sink(site), Sink(bare)
        users = ready_users(site, sink, 3)
        relay = BareRelay(Route(url_of(bare, "listener"), "done", largest=LARGEST))
        relay.start(bare.server)
        try:
            for run in range(runs):
                if run:
                    _wait_until_taken(site, count)
                alone.append(_latest(bare, relay.pid, users, count))
                ours.append(_latest(site, site.listener.pid, users, count))
                parked.append(float(site.server.depth("knime-jobs.parked")))
                if ours[-1].is_cut:  # whatever it does now would disturb the next run
                    break
        finally:
            relay.stop()
    return _figures(count, ours, alone, parked)


def _latest(site: Place, pid: int, users: list[str], count: int) -> Run:
    """Publish the bodies among small jobs, and return what became of those."""
    forget_peak(pid)
    url = url_of(site)
    large = multiprocessing.get_context("spawn").Process(target=_publish, args=(url, count), daemon=True)
    large.start()
    try:
        seen = through_queue(site, url, stream(users, RATE, int(RATE * SECONDS[count])), wait=WAIT)
    except Overdue as overdue:
        return Run(overdue.seconds, peak(pid), is_cut=True)
    finally:
        large.join(60)
        large.kill()
    return Run(max(seen.received) / 1000, peak(pid))


def _publish(url: str, count: int) -> None:
    """Publish the bodies, from 1.5 s on, when the small jobs flow."""
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        body = b"x" * SIZE
        time.sleep(1.5)
        for _ in range(count):
            channel.basic_publish(JOBS_EXCHANGE, "new-work", body, pika.BasicProperties(delivery_mode=2))


def _wait_until_taken(site: Site, count: int) -> None:
    """Wait until all bodies are parked, and take them away."""
    wait_for(lambda: site.server.depth("knime-jobs.parked") >= count, 120, f"{count} parked bodies")
    site.server.channel.queue_purge("knime-jobs.parked")


def _expect_room() -> None:
    """Raise NotHere where the bodies would have the broker raise its memory alarm."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    if free < NEEDED:
        raise NotHere(f"{free >> 30} GiB are free, the broker needs {NEEDED >> 30} for these bodies")


def _figures(count: int, ours: list[Run], alone: list[Run], parked: list[float]) -> list[Figure]:
    what = f"{count} bodies of 120 MiB"
    late, bare = tuple(run.latest for run in ours), tuple(run.latest for run in alone)
    later = tuple(a - b for a, b in zip(late, bare, strict=True))
    cut = min((number for number, run in enumerate(ours) if run.is_cut), default=None)
    bounds = (None, None) if cut is None else (late[cut], later[cut])
    memory, bare_memory = tuple(run.memory for run in ours), tuple(run.memory for run in alone)
    return [
        Figure(f"{what}: others' latest job, through the listener", "s", late, bound=bounds[0]),
        Figure(f"{what}: others' latest job, a bare pika consumer", "s", bare, bare=True),
        Figure(
            f"{what}: others later than behind a bare pika consumer, each pair", "s", later, goal=0.5, bound=bounds[1]
        ),
        Figure(f"{what}: listener, resident, peak", "MB", memory, goal=60.0 + 3 * SIZE / 2**20),
        Figure(f"{what}: bare pika consumer, resident, peak", "MB", bare_memory, bare=True),
        Figure(f"{what}: of these parked when the others' jobs ended", "count", tuple(parked), "higher"),
    ]
