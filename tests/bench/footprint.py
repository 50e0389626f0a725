"""Memory over time, and what is used when something goes wrong: a broker that ends, a poison message.

How it could lie: resident memory counts pages shared with other processes, and an allocator keeps what it once had. So
what counts is growth within one process, after the first thousand jobs; the peak is the kernel's (VmHWM). A poison
message is one that was parked: a listener that looped would use a core and write a log, which is what is looked at.
"""

import time

from tests.bench.figures import Figure
from tests.bench.instruments import (
    TO_SINK,
    Sink,
    install_executor_that_only_connects,
    publish,
    publish_jobs,
    ready_users,
    rss,
    share_of_a_core,
)
from tests.lab.chaos import listener_status
from tests.lab.processes import wait_for
from tests.lab.site import Site


def memory(site: Site, _runs: int) -> list[Figure]:
    """Resident memory of the listener, idle and with 10,000 small jobs held for an executor that does not connect."""
    site.installation.configure_knime(start_time=1000.0)
    site.start(listener={"hand_over": {"start_timeout": 600.0}})
    time.sleep(1.0)
    idle = rss(site.listener.pid)
    publish_jobs(site, [site.accounts.user("late").name], 10_000)
    wait_for(lambda: site.server.depth() == 0, 30, "10,000 jobs held")
    time.sleep(1.0)
    return [
        Figure("listener, resident, idle", "MB", (idle,), goal=32.0),
        Figure("listener, resident, 10,000 small jobs held", "MB", (rss(site.listener.pid),), goal=39.0),
    ]


def memory_over_time(site: Site, _runs: int) -> list[Figure]:
    """Growth of the listener's resident memory from the 1,000th job to the 100,000th, never more than 1,000 held."""
    site.start(listener=TO_SINK)
    sink = Sink(site)
    users = ready_users(site, sink, 10)
    seen = []
    for _ in range(100):
        publish_jobs(site, users, 1000)
        sink.wait(1000)
        sink.empty()
        seen.append(rss(site.listener.pid))
    what = "listener, resident: more after 100,000 jobs than after 1,000"
    return [Figure(what, "MB", (seen[-1] - seen[0],), goal=2.0)]


def broker_restart(site: Site, runs: int) -> list[Figure]:
    """Kill the broker and start it: from its first connection on until a ready user's job is handed over."""
    install_executor_that_only_connects(site)
    user = site.accounts.user("alice").name
    site.start(listener=TO_SINK)
    sink = Sink(site)
    taken = []
    for _ in range(min(runs, 3)):
        sink.latencies(user, 20)
        site.server.close()
        site.broker.kill()
        site.broker.start()
        began = time.monotonic()
        site.server.connect()
        sink.declare()
        sink.latencies(user, 1)
        taken.append(time.monotonic() - began)
    return [Figure("the broker killed and started: it is up until the next job is handed over", "s", tuple(taken))]


def poison_message(site: Site, _runs: int) -> list[Figure]:
    """Publish what is no job: how often it is parked, and what the listener uses and writes afterwards."""
    site.start()
    lines = len(site.listener.log_text().splitlines())
    publish(site, b'{"user":', delivery_mode=2)
    wait_for(lambda: sum(listener_status(site)["totals"]["parked"].values()) > 0, 10, "its parking")
    share = share_of_a_core(site.listener.pid, 5.0)
    logged = len(site.listener.log_text().splitlines()) - lines
    parked = float(site.server.depth("knime-jobs.parked"))
    return [
        Figure("a poison message: parked", "count", (parked,), goal=1.0),
        Figure("a poison message: lines logged", "count", (float(logged),)),
        Figure("a poison message: the listener's share afterwards", "% of a core", (share,), goal=0.5),
    ]
