"""First jobs of new users: many at once, and others beside one whose look-up hangs.

How it could lie: the executors connect at once and consume nothing, so what KNIME itself takes to start (10 to 20 s) is
not in it, and no start is held up by another's Java. Accounts are local files: a directory service costs more, which
``scopes`` measures. The look-up that hangs is a worker that sleeps in the step that asks NSS; a real NSS module that
hangs is no different to whoever waits, since that step is a process of its own.
"""

import json
import time

from tests.bench.figures import Figure
from tests.bench.instruments import (
    TO_SINK,
    Sink,
    install_executor_that_only_connects,
    limits,
    publish,
    publish_jobs,
)
from tests.bench.spread import median
from tests.lab.accounts import end_processes
from tests.lab.site import Site

HANGS = """

_decides = _who


def _who(os_user, config):
    if os_user.endswith("hangs"):
        import time

        time.sleep(10.0)
    return _decides(os_user, config)
"""


def new_users(site: Site, runs: int) -> list[Figure]:
    """50 first jobs at once, executors that only connect; the last one started, and the last one handed over."""
    install_executor_that_only_connects(site)
    site.start(listener=TO_SINK)
    sink = Sink(site)
    users = [site.accounts.user(f"u{number}") for number in range(50)]
    started, handed_over = [], []
    for _ in range(min(runs, 3)):
        site.helper.stop()
        site.listener.stop()
        end_processes([user.uid for user in users])
        site.helper.start()
        site.listener.start()
        sink.empty()
        began = time.time()
        publish_jobs(site, [user.name for user in users], 50)
        sink.wait(50)
        handed_over.append(time.time() - began)
        records = [json.loads(line) for line in site.installation.audit_log.read_text(encoding="ascii").splitlines()]
        started.append(max(record["time"] for record in records if record["event"] == "started") - began)
    what = "50 new users at once, local accounts, no scopes: the last"
    return [
        Figure(f"{what} started", "s", tuple(started)),
        Figure(f"{what} handed over", "s", tuple(handed_over), goal=0.6),
    ]


def hanging_look_up(site: Site, runs: int) -> list[Figure]:
    """One user's look-up hangs for 10 s: a ready user's jobs and new users' first jobs, before and meanwhile."""
    install_executor_that_only_connects(site)
    worker = site.installation.root / "lib/root_helper/worker.py"
    worker.write_text(worker.read_text(encoding="utf-8") + HANGS, encoding="utf-8")
    users = [site.accounts.user(f"u{number}").name for number in range(41)]
    site.start(helper=limits(), listener=TO_SINK)
    sink = Sink(site)
    sink.latencies(users[0], 1)
    time.sleep(1.0)  # until it counts as ready
    before = sink.latencies(users[0], 200), [sink.latencies(user, 1)[0] for user in users[1:21]]
    publish(site, json.dumps({"user": site.accounts.user("hangs").name, "job": "hangs"}).encode())
    meanwhile = sink.latencies(users[0], 200), [sink.latencies(user, 1)[0] for user in users[21:]]
    del runs  # the hanging one is there once, for 10 s
    later = [median(after) - median(earlier) for earlier, after in zip(before, meanwhile, strict=True)]
    slowest = max(meanwhile[1]) - max(before[1])
    what = "one user's look-up hangs 10 s: later by"
    return [
        Figure(f"{what}, a ready user's jobs, median", "ms", (later[0],), goal=50.0),
        Figure(f"{what}, new users' first jobs, median", "ms", (later[1],), goal=50.0),
        Figure(f"{what}, the slowest new user", "ms", (slowest,), goal=50.0),
    ]
