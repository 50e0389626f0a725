"""How many jobs go through, on a queue of their own and on one that is shared with executors."""

import statistics
import time
from itertools import pairwise

from tests.bench.instruments import (
    TO_SINK,
    Rows,
    Sink,
    install_executor_that_only_connects,
    publish_jobs,
)
from tests.bench.relay import BareRelay
from tests.lab.broker_node import JOBS_EXCHANGE
from tests.lab.processes import cpu_seconds, wait_for
from tests.lab.site import Site


def jobs_a_second(site: Site) -> Rows:
    """Jobs through the listener, all users ready, against a bare pika relay; five interleaved runs."""
    install_executor_that_only_connects(site)
    ours, bare = [], []
    users = [site.accounts.user(f"u{number}").name for number in range(10)]
    site.start(listener=TO_SINK)
    sink = Sink(site)
    publish_jobs(site, users, len(users))
    sink.wait(len(users))
    time.sleep(1.0)
    for _ in range(5):
        ours.append(_rate(site, sink, users))
        site.listener.stop()
        relay = BareRelay(site.broker.listener.at(site.broker.port, site.vhost), JOBS_EXCHANGE, "done")
        relay.start()
        bare.append(_rate(site, sink, users))
        relay.stop()
        site.listener.start()
        time.sleep(1.5)
    ratio = statistics.median(ours) / statistics.median(bare)
    seen = f"{statistics.median(ours):,.0f}; {statistics.median(bare):,.0f}: ratio {ratio:.2f}"
    each = ", ".join(f"{a / b:.2f}" for a, b in zip(ours, bare, strict=True))
    what = "jobs a second through one listener, all users ready; a bare pika relay, five interleaved runs"
    return [(what, f"{seen} ({each})", ">= 0.8")]


def two_hundred_jobs(site: Site) -> Rows:
    """200 jobs of one user, 20 ms each, one shared queue, with the listener and without."""
    site.start()
    user = site.accounts.user("alice")
    site.server.publish(user.name)
    site.server.results(1)
    seconds, inverted = _two_hundred(site, user.name)
    site.listener.stop()
    alone, _ = _two_hundred(site, user.name)
    seen = f"{seconds:.1f} s, {inverted} inversions; {alone:.1f} s: {seconds / alone:.2f} times"
    what = "200 jobs of one user, 20 ms each, one shared queue; without a listener"
    return [(what, seen, "<= 2 times, <= 3 inversions")]


def ten_users(site: Site) -> Rows:
    """10 users, 50 jobs of 20 ms each, 10 executors on the one queue."""
    site.start()
    users = [site.accounts.user(f"u{number}").name for number in range(10)]
    for user in users:
        site.server.publish(user)
    site.server.results(10)
    began = time.time()
    for _ in range(50):
        for user in users:
            site.server.publish(user, seconds=0.02)
    reports = site.server.results(500, seconds=120)
    seen = f"{max(report['done'] for report in reports) - began:.1f} s"
    return [("10 users, 50 jobs of 20 ms each, 10 executors, one shared queue", seen, "<= 8 s")]


def busy_user(site: Site) -> Rows:
    """10,000 jobs of a busy user come back again and again; another user's first job, and the listener's CPU share."""
    site.start()
    busy, other = site.accounts.user("busy"), site.accounts.user("other")
    for _ in range(10_000):
        site.server.publish(busy.name, seconds=0.5)
    wait_for(lambda: site.server.further_results(0.1), 30, "a job of the busy user")
    time.sleep(2.0)
    used = cpu_seconds(site.listener.pid)
    began = time.time()
    job = site.server.publish(other.name)
    while (report := site.server.results(1, seconds=30)[0])["job"] != job:
        pass
    first = report["received"] - began
    time.sleep(max(0.0, 5.0 - (time.time() - began)))
    share = (cpu_seconds(site.listener.pid) - used) / (time.time() - began)
    return [
        ("10,000 returned jobs of a busy user: another user's first job", f"{first:.2f} s", "<= 1 s"),
        ("the listener's share of a core meanwhile", f"{share:.0%}", "< 20 %"),
    ]


def _rate(site: Site, sink: Sink, users: list[str], jobs: int = 20_000) -> float:
    """Give the jobs a second of what consumes the queue, from a full queue on."""
    sink.empty()
    began = time.monotonic()
    publish_jobs(site, users, jobs)
    sink.wait(jobs)
    return jobs / (time.monotonic() - began)


def _two_hundred(site: Site, user: str) -> tuple[float, int]:
    began = time.time()
    jobs = [site.server.publish(user, seconds=0.02) for _ in range(200)]
    reports = site.server.results(200, seconds=120)
    order = [jobs.index(report["job"]) for report in reports]
    inverted = sum(after < before for before, after in pairwise(order))
    return max(report["done"] for report in reports) - began, inverted
