"""Memory over time, and what is used and lost when something goes wrong: a broker that ends, a poison message."""

import time

from tests.bench.instruments import (
    TO_SINK,
    Rows,
    Sink,
    install_executor_that_only_connects,
    publish,
    publish_jobs,
    rss,
)
from tests.lab.processes import cpu_seconds, wait_for
from tests.lab.site import Site


def memory(site: Site) -> Rows:
    """Resident memory of the listener, idle and with 10,000 small jobs held for an executor that does not connect."""
    site.installation.configure_knime(start_time=1000.0)
    site.start(listener={"hand_over": {"start_timeout": 600.0}})
    time.sleep(1.0)
    idle = rss(site.listener.pid)
    publish_jobs(site, [site.accounts.user("late").name], 10_000)
    wait_for(lambda: site.server.depth() == 0, 30, "10,000 jobs held")
    time.sleep(1.0)
    seen = f"{idle:.1f}; {rss(site.listener.pid):.1f} MB"
    return [("memory, resident: listener idle; with 10,000 small jobs held", seen, "<= 34; <= 42 MB")]


def memory_over_time(site: Site) -> Rows:
    """Resident memory of the listener after 1,000 jobs, after 20,000 and after 100,000, never more than 1,000 held."""
    install_executor_that_only_connects(site)
    users = [site.accounts.user(f"u{number}").name for number in range(10)]
    site.start(listener=TO_SINK)
    sink = Sink(site)
    seen = []
    for _ in range(100):
        publish_jobs(site, users, 1000)
        sink.wait(1000)
        sink.empty()
        seen.append(rss(site.listener.pid))
    text = f"{seen[0]:.1f}; {seen[19]:.1f}; {seen[-1]:.1f} MB"
    return [("memory, resident: listener after 1,000 jobs; 20,000; 100,000", text, "<= 2 MB more than after 1,000")]


def broker_restart(site: Site) -> Rows:
    """Kill the broker and start it: from its first connection on until a ready user's job is handed over."""
    install_executor_that_only_connects(site)
    user = site.accounts.user("alice").name
    site.start(listener=TO_SINK)
    sink = Sink(site)
    taken = []
    for _ in range(3):
        sink.latencies(user, 20)
        site.server.close()
        site.broker.kill()
        site.broker.start()
        began = time.monotonic()
        site.server.connect()
        sink.declare()
        sink.latencies(user, 1)
        taken.append(time.monotonic() - began)
    seen = ", ".join(f"{one:.2f}" for one in sorted(taken))
    return [("the broker killed and started: it is up until the next job is handed over", f"{seen} s", "-")]


def poison_message(site: Site) -> Rows:
    """Publish what is no job: how often it is parked, and what the listener uses afterwards."""
    site.start()
    lines = len(site.listener.log_text().splitlines())
    publish(site, b'{"user":', delivery_mode=2)
    wait_for(lambda: site.server.depth() == 0, 10, "its consumption")
    time.sleep(0.5)
    used, began = cpu_seconds(site.listener.pid), time.monotonic()
    time.sleep(5.0)
    share = (cpu_seconds(site.listener.pid) - used) / (time.monotonic() - began)
    logged = len(site.listener.log_text().splitlines()) - lines
    seen = f"parked {site.server.depth('knime-jobs.parked')}, {share:.1%} of a core, {logged} log lines"
    return [("a poison message", seen, "parked once, 0 %")]
