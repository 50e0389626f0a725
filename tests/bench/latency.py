"""How much later a job arrives through the listener than through the broker alone, at several rates.

How it could lie, and why it does not: see ``open_loop`` for coordinated omission and the publisher's own lateness. The
control is the same publisher process, the same receiver and the same queue, but its routing key leads there directly:
what is between the two is the listener and one more pass through the broker. Both are measured in pairs, the first of a
pair by turns. The jobs are persistent and the users ready. At 10 jobs a second the 99th percentile is the largest of
few: its spread says what it is worth. A median of thousands of jobs a second would hide a stall: the percentile and the
1,000 a second are there for that.
"""

import itertools
import time
from typing import Final

from tests.bench.figures import Figure
from tests.bench.instruments import NEVER_CONNECTS, TO_SINK, Sink, limits, publish_jobs, ready_users, url_of, users_of
from tests.bench.open_loop import Latencies, Stream, through_queue
from tests.bench.spread import percentile
from tests.lab.processes import wait_for
from tests.lab.site import Site

RATES: Final = ((10, 40), (100, 300), (1000, 2000))
"""Jobs a second, and how many."""
RUNS: Final = itertools.count()


def stream(users: list[str], rate: float, count: int, routing_key: str = "new-work") -> Stream:
    """Return a stream whose jobs differ from those of every other one."""
    return Stream(f"{time.time_ns():x}.{next(RUNS)}", users, rate, count, routing_key)


def hand_over(site: Site, runs: int) -> list[Figure]:
    """Latency at 10, 100 and 1,000 jobs a second through the listener, and through the broker alone."""
    site.start(listener=TO_SINK)
    sink = Sink(site)
    users = ready_users(site, sink, 10)
    url = url_of(site)
    figures: list[Figure] = []
    for rate, count in RATES:
        ours, bare = list[Latencies](), list[Latencies]()
        for number in range(runs):
            through, direct = stream(users, rate, count), stream(users, rate, count, "done")
            for side, one in [(ours, through), (bare, direct)][:: 1 if number % 2 == 0 else -1]:
                side.append(through_queue(site, url, one))
        figures += _figures(f"hand-over at {rate:,} jobs/s", ours, bare)
    return figures


def while_others_start(site: Site, runs: int) -> list[Figure]:
    """Latency of a ready user's jobs, at 100 a second, alone and while 50 executors' connections are waited for."""
    site.start(helper=limits(), listener={**TO_SINK, "hand_over": {"start_timeout": 600.0}})
    sink = Sink(site)
    users = ready_users(site, sink, 1)
    url = url_of(site)
    runs = min(runs, 3)
    alone = [through_queue(site, url, stream(users, 100, 200)) for _ in range(runs)]
    (site.installation.knime_home / "knime").write_text(NEVER_CONNECTS, encoding="ascii")
    slow = [site.accounts.user(f"slow{number}").name for number in range(50)]
    publish_jobs(site, slow, len(slow))
    wait_for(lambda: sum(one["pid"] is not None for one in users_of(site)) == 51, 30, "50 starts")
    meanwhile = [through_queue(site, url, stream(users, 100, 200)) for _ in range(runs)]
    return [
        Figure("a ready user's hand-over at 100 jobs/s, alone, p99", "ms", tuple(one.p99 for one in alone)),
        Figure("the same while 50 executors are waited for, p99", "ms", tuple(one.p99 for one in meanwhile)),
    ]


def _figures(what: str, ours: list[Latencies], bare: list[Latencies]) -> list[Figure]:
    pairs = list(zip(ours, bare, strict=True))
    late = tuple(percentile(one.late, 99) for pair in pairs for one in pair)
    medians, most = tuple(a.median - b.median for a, b in pairs), tuple(a.p99 - b.p99 for a, b in pairs)
    return [
        Figure(f"{what}: through the listener, median", "ms", tuple(one.median for one in ours)),
        Figure(f"{what}: through the listener, p99", "ms", tuple(one.p99 for one in ours)),
        Figure(f"{what}: the broker alone, median", "ms", tuple(one.median for one in bare), bare=True),
        Figure(f"{what}: the broker alone, p99", "ms", tuple(one.p99 for one in bare), bare=True),
        Figure(f"{what}: later than the broker alone, median, each pair", "ms", medians, goal=0.5),
        Figure(f"{what}: later than the broker alone, p99, each pair", "ms", most, goal=2.0),
        Figure(f"{what}: the publisher was late itself by, p99", "ms", late, bare=True),
    ]
