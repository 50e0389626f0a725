"""One queue that the listener and real, if simulated, executors share: jobs come back and are handed over again.

How it could lie: the executors are ``simulated_knime``'s, whose jobs only sleep, so a run takes the sleeping and what
is lost between jobs; the run without a listener has the same executor, the same jobs and the same publisher, and
the ratio is taken in each pair. An inversion is a job that ran before one that was published earlier. The busy user's
10,000 jobs are all held back by an executor that works at one of them: the other user's job is a first one, start
included.
"""

import time
from itertools import pairwise

from tests.bench.figures import Figure
from tests.bench.instruments import share_of_a_core
from tests.lab.processes import wait_for
from tests.lab.site import Site


def two_hundred_jobs(site: Site, runs: int) -> list[Figure]:
    """200 jobs of one user, 20 ms each, one shared queue, with the listener and without."""
    site.start()
    user = site.accounts.user("alice").name
    site.server.publish(user)
    site.server.results(1)
    through, alone = list[tuple[float, int]](), list[tuple[float, int]]()
    for _ in range(min(runs, 3)):
        through.append(_two_hundred(site, user))
        site.listener.stop()
        alone.append(_two_hundred(site, user))
        site.listener.start()
    ratios = tuple(a[0] / b[0] for a, b in zip(through, alone, strict=True))
    what = "200 jobs of one user, 20 ms each, one shared queue"
    return [
        Figure(what, "s", tuple(seconds for seconds, _ in through)),
        Figure(f"{what}: without a listener", "s", tuple(seconds for seconds, _ in alone), bare=True),
        Figure(f"{what}: with / without, each pair", "times", ratios, goal=1.2),
        Figure(f"{what}: inversions", "count", tuple(float(inverted) for _, inverted in through), goal=1.0),
    ]


def ten_users(site: Site, runs: int) -> list[Figure]:
    """10 users, 50 jobs of 20 ms each, 10 executors on the one queue."""
    site.start()
    users = [site.accounts.user(f"u{number}").name for number in range(10)]
    for user in users:
        site.server.publish(user)
    site.server.results(10)
    seconds = []
    for _ in range(min(runs, 3)):
        began = time.time()
        for _ in range(50):
            for user in users:
                site.server.publish(user, seconds=0.02)
        reports = site.server.results(500, seconds=120)
        seconds.append(max(report["done"] for report in reports) - began)
    return [Figure("10 users, 50 jobs of 20 ms each, 10 executors, one shared queue", "s", tuple(seconds))]


def busy_user(site: Site, runs: int) -> list[Figure]:
    """10,000 jobs of a busy user come back again and again; other users' first jobs, and the listener's share."""
    site.start()
    busy = site.accounts.user("busy").name
    others = [site.accounts.user(f"other{number}").name for number in range(min(runs, 3))]
    for _ in range(10_000):
        site.server.publish(busy, seconds=0.5)
    wait_for(lambda: site.server.further_results(0.1), 30, "a job of the busy user")
    first = [_first_job(site, other) for other in others]
    share = tuple(share_of_a_core(site.listener.pid, 2.0) for _ in range(min(runs, 3)))
    what = "10,000 returned jobs of a busy user"
    return [
        Figure(f"{what}: another user's first job", "s", tuple(first), goal=1.0),
        Figure(f"{what}: the listener's share", "% of a core", share, goal=20.0),
    ]


def _first_job(site: Site, user: str) -> float:
    began = time.time()
    job = site.server.publish(user)
    while (report := site.server.results(1, seconds=30)[0])["job"] != job:
        pass
    return float(report["received"]) - began


def _two_hundred(site: Site, user: str) -> tuple[float, int]:
    began = time.time()
    jobs = [site.server.publish(user, seconds=0.02) for _ in range(200)]
    reports = site.server.results(200, seconds=120)
    order = [jobs.index(report["job"]) for report in reports]
    inverted = sum(after < before for before, after in pairwise(order))
    return max(report["done"] for report in reports) - began, inverted
