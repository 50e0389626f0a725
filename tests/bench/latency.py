"""How long one job, or one user's first job, takes; alone, beside thousands of users, and beside one that hangs."""

import json
import statistics
import threading
import time

import zmq

from tests.bench.instruments import (
    TO_SINK,
    AnsweringHelper,
    Rows,
    Sink,
    as_listener,
    gate_of,
    install_executor_that_only_connects,
    publish,
    publish_jobs,
    rss,
    spread,
)
from tests.lab.accounts import OsUser
from tests.lab.chaos import listener_status
from tests.lab.processes import wait_for
from tests.lab.site import Site

KNOWN = (1, 100, 1000, 5000)
NEVER_CONNECTS = """\
#!/usr/bin/python3 -IS
import _signal
while True:
    _signal.pause()
"""


def hand_over(site: Site) -> Rows:
    """From the publisher's call to the executor's receipt, executor running; and the broker alone."""
    site.start()
    user = site.accounts.user("alice")
    site.server.publish(user.name)
    site.server.results(1)
    site.server.further_results(1.0)
    through = _received(site, user)
    site.listener.stop()
    direct = _received(site, user)
    return [
        ("hand-over, executor running, median / p99", spread(through), "<= 1.5 / <= 4 ms"),
        ("the same without a listener (broker alone)", spread(direct), "-"),
    ]


def users_known(site: Site) -> Rows:
    """Hand-over latency to a bare consumer, and memory, with 1 to 5,000 users known, each with an executor."""
    helper = AnsweringHelper(site)
    try:
        site.installation.write_listener_toml(**TO_SINK)
        site.listener.start()
        sink = Sink(site)
        medians, memory = [], {}
        for before, known in zip((0, *KNOWN), KNOWN, strict=False):
            publish_jobs(site, [f"u{number}" for number in range(before, known)], known - before)
            sink.wait(known - before)
            time.sleep(1.0)  # until each of them counts as ready
            sink.empty()
            medians.append(statistics.median(sink.latencies("u0", 400)))
            memory[known] = rss(site.listener.pid)
    finally:
        helper.close()
    seen = ", ".join(f"{median:.2f}" for median in medians)
    flat = max(medians) / min(medians)
    return [
        ("1, 100, 1,000, 5,000 users known: hand-over to a bare consumer, median", f"{seen} ms: {flat:.2f}", "<= 1.5"),
        ("listener, resident, 1,000 users known; 5,000", f"{memory[1000]:.1f}; {memory[5000]:.1f} MB", "<= 36; - MB"),
    ]


def while_others_start(site: Site) -> Rows:
    """Hand-over latency to a bare consumer, alone, and while the connections of 50 executors are looked for."""
    user = site.accounts.user("alice").name
    slow = [site.accounts.user(f"u{number}").name for number in range(50)]
    install_executor_that_only_connects(site)
    site.start(listener={**TO_SINK, "hand_over": {"start_timeout": 600.0}})
    sink = Sink(site)
    sink.latencies(user, 50)
    time.sleep(1.0)
    alone = sink.latencies(user, 500)
    (site.installation.knime_home / "knime").write_text(NEVER_CONNECTS, encoding="ascii")
    publish_jobs(site, slow, len(slow))
    wait_for(lambda: sum(one["pid"] is not None for one in listener_status(site)["users"]) == 51, 30, "50 starts")
    meanwhile = sink.latencies(user, 500)
    what = "hand-over to a bare consumer, median / p99; while 50 executors are waited for"
    return [(what, f"{spread(alone)}; {spread(meanwhile)}", "-")]


def new_users(site: Site) -> Rows:
    """50 first jobs at once, executors that only connect; the last one handed over, to a queue that nobody serves."""
    install_executor_that_only_connects(site)
    site.start(listener=TO_SINK)
    sink = Sink(site)
    users = [site.accounts.user(f"u{number}") for number in range(50)]
    began = time.time()
    for user in users:
        site.server.publish(user.name)
    sink.wait(50)
    handed_over = time.time() - began
    records = [json.loads(line) for line in site.installation.audit_log.read_text(encoding="ascii").splitlines()]
    executed = max(record["time"] for record in records if record["event"] == "started") - began
    what = "50 new users at once, executors that connect at once: the last"
    return [(f"{what} started", f"{executed:.2f} s", "-"), (f"{what} handed over", f"{handed_over:.2f} s", "<= 1 s")]


HANGS = """

_decides = _who


def _who(os_user, config):
    if os_user.endswith("hangs"):
        import time

        time.sleep(10.0)
    return _decides(os_user, config)
"""


def one_hanging_user(site: Site) -> Rows:
    """One user's look-up hangs for 10 s: a running user's jobs, and other new users' first jobs, before and meanwhile.

    An NSS module that hangs is a worker that does: the look-up is the worker's own step.
    """
    install_executor_that_only_connects(site)
    worker = site.installation.root / "lib/root_helper/worker.py"
    worker.write_text(worker.read_text(encoding="utf-8") + HANGS, encoding="utf-8")
    users = [site.accounts.user(f"u{number}").name for number in range(41)]
    hanging = site.accounts.user("hangs").name
    site.start(listener=TO_SINK)
    sink = Sink(site)
    sink.latencies(users[0], 1)
    time.sleep(1.0)
    before = sink.latencies(users[0], 300), [sink.latencies(user, 1)[0] for user in users[1:21]]
    publish(site, json.dumps({"user": hanging, "job": "hangs"}).encode())
    meanwhile = sink.latencies(users[0], 300), [sink.latencies(user, 1)[0] for user in users[21:]]
    running, first = (
        [statistics.median(after) - statistics.median(a)] for a, after in zip(before, meanwhile, strict=True)
    )
    slowest = max(meanwhile[1]) - max(before[1])
    seen = f"running {running[0]:.2f}, new {first[0]:.1f}, slowest new {slowest:.1f} ms"
    return [("one user's look-up hangs 10 s: others' jobs later by, median", seen, "<= 50 ms")]


def ensure(site: Site) -> Rows:
    """Ask ``ensure`` for a running executor, through the gate, and make a bare pyzmq round trip."""
    site.helper.start()
    user = site.accounts.user("alice")
    bare = f"ipc://{site.installation.run}/bare.sock"
    threading.Thread(target=_echo, args=(bare, 2000), daemon=True).start()
    ours = as_listener(lambda: _round_trips(f"ipc://{site.installation.socket}", user.name, 2000))
    alone = _round_trips(bare, user.name, 2000)
    memory = f"{rss(site.helper.pid):.0f}, {rss(gate_of(site.helper.pid)):.0f} MB"
    return [
        ("`ensure` round trip, executor running, through the gate, median / p99", spread(ours), "<= 0.4 ms"),
        ("bare pyzmq round trip", spread(alone), "-"),
        ("memory, resident: supervisor, gate", memory, "<= 22, <= 24 MB"),
    ]


def _received(site: Site, user: OsUser) -> list[float]:
    taken = []
    for _ in range(200):
        job = site.server.publish(user.name, seconds=0.0)
        (report,) = site.server.results(1)
        taken.append((report["received"] - site.server.published[job]) * 1000)
        time.sleep(0.01)  # the executor acks after it has answered; one that is busy is not what is measured
    return taken


def _round_trips(address: str, user: str, count: int) -> list[float]:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(address)
    times = []
    for number in range(count):
        frame = json.dumps({"v": 1, "id": str(number), "op": "ensure", "user": user}).encode()
        began = time.perf_counter()
        socket.send(frame)
        if not socket.poll(10_000):
            raise TimeoutError("no reply")
        socket.recv()
        times.append((time.perf_counter() - began) * 1000)
    context.destroy(0)
    return times[count // 10 :]


def _echo(address: str, count: int) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(address)
    for _ in range(count):
        socket.send_multipart(socket.recv_multipart())
    time.sleep(0.5)
    context.destroy(0)
