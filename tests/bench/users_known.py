"""Hand-over latency, memory and the idle listener's processor time with 1 to 20,000 users known.

How it could lie: the users have no processes (``answering_helper``), or 20,000 executors would be what is measured; so
this is the listener's part alone. Jobs go to users by turns all over those that are known, and not to one whose entry
is always warm. Latency is an open loop's at 100 jobs a second, beside the broker alone on the same machine at the same
moment. Users who were never heard of again would be forgotten after ten minutes: the bench is shorter, so that all of
them are there.
"""

import time
from typing import Final

from tests.bench.answering_helper import AnsweringHelper
from tests.bench.figures import Figure
from tests.bench.instruments import TO_SINK, Sink, publish_jobs, rss, share_of_a_core, url_of, users_of
from tests.bench.latency import stream
from tests.bench.open_loop import Latencies, through_queue
from tests.lab.processes import wait_for
from tests.lab.site import Site

KNOWN: Final = (1, 100, 1000, 5000, 20_000)
JOBS: Final = 150


def users_known(site: Site, runs: int) -> list[Figure]:
    """Latency at 100 jobs a second, memory and idle processor time with 1, 100, 1,000, 5,000 and 20,000 users known."""
    helper = AnsweringHelper(site)
    try:
        site.installation.write_listener_toml(**TO_SINK)
        site.listener.start()
        sink = Sink(site)
        figures: list[Figure] = []
        for before, known in zip((0, *KNOWN), KNOWN, strict=False):
            publish_jobs(site, [f"u{number}" for number in range(before, known)], known - before)
            sink.wait(known - before, 120)
            time.sleep(1.0)  # until each of them counts as ready
            sink.empty()
            figures += _with(site, known, runs)
        if len(users_of(site)) != KNOWN[-1]:
            raise RuntimeError(f"the listener knows {len(users_of(site))} users")
    finally:
        site.listener.stop()
        helper.close()
    return figures


def _with(site: Site, known: int, runs: int) -> list[Figure]:
    """Measure with so many users."""
    url = url_of(site)
    users = [f"u{number * known // min(known, JOBS)}" for number in range(min(known, JOBS))]
    ours, bare = list[Latencies](), list[Latencies]()
    for _ in range(min(runs, 3)):
        ours.append(through_queue(site, url, stream(users, 100, JOBS)))
        bare.append(through_queue(site, url, stream(users, 100, JOBS, "done")))
    wait_for(lambda: site.server.depth() == 0, 10, "an empty queue")
    later = tuple(a.median - b.median for a, b in zip(ours, bare, strict=True))
    what = f"{known:,} users known" if known > 1 else "1 user known"
    return [
        Figure(f"{what}: hand-over at 100 jobs/s, median", "ms", tuple(one.median for one in ours)),
        Figure(f"{what}: hand-over at 100 jobs/s, p99", "ms", tuple(one.p99 for one in ours)),
        Figure(f"{what}: later than the broker alone, median, each pair", "ms", later, goal=0.5),
        Figure(f"{what}: listener, resident", "MB", (rss(site.listener.pid),)),
        Figure(f"{what}: listener, idle", "% of a core", (share_of_a_core(site.listener.pid, 2.0),)),
    ]
