"""A job's way to its user's executor, one of 1, 10, 100 and 300 on one queue; with the listener and without.

How it could lie: see ``many_executors`` for what one process with N consumers leaves out. The helper is the one that
answers "running" (``answering_helper``), so that N users are known and no start is in the figures. The control is the
same N consumers on a queue without a listener, where a job goes round until it meets its own executor: what circulation
itself costs. Jobs are due at fixed times (``open_loop``), few enough that one is through before the next is due.
They are for users drawn by chance: RabbitMQ gives jobs to its consumers by turns, so that jobs for users by turns
would meet their own executor at once, again and again. How often a job was put back stands beside: about N/2 where
nothing else decides.
"""

import random
import time
from typing import Final

from tests.bench.answering_helper import AnsweringHelper
from tests.bench.figures import Figure
from tests.bench.instruments import Place, url_of, users_of, without_listener
from tests.bench.latency import stream
from tests.bench.many_executors import ManyExecutors
from tests.bench.open_loop import Latencies, Stream, measured
from tests.lab.processes import wait_for
from tests.lab.site import Site

RATES: Final = {1: 8.0, 10: 8.0, 100: 8.0, 300: 4.0}
"""Numbers of executors, and how many jobs a second: with 300 executors a job takes about 60 ms."""
JOBS: Final = 16
RUNS: Final = 3


def many_executors(site: Site, runs: int) -> list[Figure]:
    """Time a job to its own executor among 1, 10, 100 and 300 on one queue, through the listener and without one."""
    helper = AnsweringHelper(site)
    figures: list[Figure] = []
    try:
        site.installation.write_listener_toml()
        site.listener.start()
        with without_listener(site) as bare:
            for number in RATES:
                users = [f"n{number}-{user}" for user in range(number)]
                through = ManyExecutors(url_of(site, "executors"), users)
                alone = ManyExecutors(url_of(bare, "executors"), users)
                try:
                    _warm(site, through, users)
                    figures += _with(number, min(runs, RUNS), (site, through), (bare, alone), users)
                finally:
                    through.end()
                    alone.end()
    finally:
        site.listener.stop()
        helper.close()
    return figures


Side = tuple[Place, ManyExecutors]


def _warm(site: Site, executors: ManyExecutors, users: list[str]) -> None:
    """Let the listener know those users whose jobs are measured, and call them ready."""
    chosen = sorted({user for run in range(RUNS) for user in _chosen(users, run)})
    for user in chosen:
        site.server.publish(user)
    until = time.monotonic() + 60
    while len(executors.arrived) < len(chosen):
        if time.monotonic() > until:
            raise TimeoutError(f"{len(executors.arrived)} of {len(chosen)} first jobs arrived")
        executors.turn()
    wait_for(lambda: all(one["state"] == "ready" for one in users_of(site)), 20, "all users ready")


def _with(number: int, runs: int, ours: Side, bare: Side, users: list[str]) -> list[Figure]:
    seen = list[tuple[Latencies, float]](), list[tuple[Latencies, float]]()
    busy = []
    for run in range(runs):
        for found, (site, executors) in zip(seen, (ours, bare), strict=True):
            used, began, hops = executors.cpu_seconds(), time.monotonic(), executors.forget()
            latencies = _run(url_of(site), executors, stream(_chosen(users, run), RATES[number], JOBS))
            found.append((latencies, (executors.hops - hops) / JOBS))
            busy.append(100 * (executors.cpu_seconds() - used) / (time.monotonic() - began))
    (with_it, without), what = seen, f"{number} executor{'s' * (number > 1)} on one queue"
    later = tuple(a[0].median - b[0].median for a, b in zip(with_it, without, strict=True))
    return [
        Figure(f"{what}: job to its executor, median", "ms", tuple(one.median for one, _ in with_it)),
        Figure(f"{what}: without a listener, median", "ms", tuple(one.median for one, _ in without), bare=True),
        Figure(f"{what}: later than without a listener, each pair", "ms", later),
        Figure(f"{what}: times put back a job", "count", tuple(hops for _, hops in with_it)),
        Figure(f"{what}: the same without a listener", "count", tuple(hops for _, hops in without), bare=True),
        Figure(f"{what}: their one process was busy", "% of a core", tuple(busy), bare=True),
    ]


def _chosen(users: list[str], run: int) -> list[str]:
    """Return for whom the jobs of a run are: others in each run, the same ones for both sides."""
    return random.Random(run).choices(users, k=JOBS)


def _run(url: str, executors: ManyExecutors, jobs: Stream) -> Latencies:
    return measured(url, jobs, executors.arrived, executors.turn)
