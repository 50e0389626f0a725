"""Measure what the README's table says, in one run, on a private broker: python3 -m tests.bench.measure [NAME ...].

Ratios are taken within the run, since machines are noisy: the bare broker, a bare pika relay and a bare ZeroMQ round
trip are measured beside ours. Needs root and what tests/run installs.
"""

import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pika
import zmq

from tests.bench.relay import BareRelay
from tests.lab.accounts import LISTENER, run_prefix, uid_of
from tests.lab.broker_node import JOBS_EXCHANGE, BrokerNode
from tests.lab.processes import wait_for
from tests.lab.site import LAB, Site

Rows = list[tuple[str, str, str]]


def main() -> None:
    """Run the measurements named on the command line, or all, and print one table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all is taken back
    wanted = sys.argv[1:] or list(MEASUREMENTS)
    node = BrokerNode(LAB / f"{run_prefix()}bench")
    rows: Rows = []
    try:
        node.create()
        node.start()
        for name in wanted:
            print(f"measuring {name} ...", file=sys.stderr)
            site = Site(node)
            try:
                site.create()
                rows += MEASUREMENTS[name](site)
            finally:
                site.remove()
    finally:
        node.remove()
    print("| what | seen | goal |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def hand_over(site: Site) -> Rows:
    """From the publisher's call to the executor's receipt, executor running; and the broker alone."""
    site.start()
    user = site.accounts.user("alice")
    site.server.publish(user.name)
    site.server.results(1)
    site.server.further_results(1.0)
    through = []
    for _ in range(200):
        job = site.server.publish(user.name, seconds=0.0)
        (report,) = site.server.results(1)
        through.append((report["received"] - site.server.published[job]) * 1000)
        time.sleep(0.01)  # the executor acks after it has answered; one that is busy is not what is measured
    site.listener.stop()
    direct = []
    for _ in range(200):
        job = site.server.publish(user.name, seconds=0.0)
        (report,) = site.server.results(1)
        direct.append((report["received"] - site.server.published[job]) * 1000)
        time.sleep(0.01)
    return [
        ("hand-over, executor running, median / p99", _spread(through), "<= 1.5 / <= 4 ms"),
        ("the same without a listener (broker alone)", _spread(direct), "-"),
    ]


def new_users(site: Site) -> Rows:
    """50 first jobs at once, executors that only connect; the last one handed over, to a queue that nobody serves."""
    _install_executor_that_only_connects(site)
    site.start(listener={"broker": {"routing_key": "done"}})
    sink = _Sink(site)
    users = [site.accounts.user(f"u{number}") for number in range(50)]
    began = time.time()
    for user in users:
        site.server.publish(user.name)
    wait_for(lambda: sink.count() >= 50, 60, "50 jobs handed over")
    handed_over = time.time() - began
    records = [json.loads(line) for line in site.installation.audit_log.read_text(encoding="ascii").splitlines()]
    executed = max(record["time"] for record in records if record["event"] == "started") - began
    return [
        ("50 new users at once, executors that connect at once: the last started", f"{executed:.2f} s", "-"),
        (
            "50 new users at once, executors that connect at once: the last handed over",
            f"{handed_over:.2f} s",
            "<= 1 s",
        ),
    ]


def jobs_a_second(site: Site) -> Rows:
    """Jobs through the listener, all users ready, against a bare pika relay; five interleaved runs."""
    _install_executor_that_only_connects(site)
    jobs = 20_000
    ours, bare = [], []
    users = [site.accounts.user(f"u{number}") for number in range(10)]
    site.start(listener={"broker": {"routing_key": "done"}})
    sink = _Sink(site)
    for user in users:
        site.server.publish(user.name)
    wait_for(lambda: sink.count() >= len(users), 30, "ready users")
    time.sleep(1.0)
    for _ in range(5):
        ours.append(_rate(site, sink, [user.name for user in users], jobs))
        site.listener.stop()
        relay = BareRelay(site.broker.listener.at(site.broker.port, site.vhost), JOBS_EXCHANGE, "done")
        relay.start()
        bare.append(_rate(site, sink, [user.name for user in users], jobs))
        relay.stop()
        site.listener.start()
        time.sleep(1.5)
    ratio = statistics.median(ours) / statistics.median(bare)
    seen = f"{statistics.median(ours):,.0f}/s, bare relay {statistics.median(bare):,.0f}/s: {ratio:.2f}"
    return [("jobs/s through one listener, all users ready", seen, ">= 0.8 of the bare relay")]


def two_hundred_jobs(site: Site) -> Rows:
    """200 jobs of one user, 20 ms each, one shared queue, with the listener and without."""
    site.start()
    user = site.accounts.user("alice")
    site.server.publish(user.name)
    site.server.results(1)
    seconds, inverted = _two_hundred(site, user.name)
    site.listener.stop()
    alone, _ = _two_hundred(site, user.name)
    seen = f"{seconds:.1f} s, {inverted} inversions; without a listener {alone:.1f} s: {seconds / alone:.2f} times"
    return [("200 jobs of one user, 20 ms each, one shared queue", seen, "<= 2 times, <= 3 inversions")]


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
    """10,000 jobs of a busy user wait; another user's first job, and the listener's share of a core."""
    site.start()
    busy, other = site.accounts.user("busy"), site.accounts.user("other")
    for _ in range(10_000):
        site.server.publish(busy.name, seconds=0.5)
    wait_for(lambda: site.server.further_results(0.1), 30, "a job of the busy user")
    time.sleep(2.0)
    used = _cpu(site.listener.pid)
    began = time.time()
    job = site.server.publish(other.name)
    while (report := site.server.results(1, seconds=30)[0])["job"] != job:
        pass
    first = report["received"] - began
    time.sleep(max(0.0, 5.0 - (time.time() - began)))
    share = (_cpu(site.listener.pid) - used) / (time.time() - began)
    memory = _rss(site.listener.pid)
    return [
        ("10,000 jobs of a busy user: another user's first start", f"{first:.2f} s", "<= 1 s"),
        ("the listener's share of a core meanwhile", f"{share:.0%}", "< 20 %"),
        ("listener, resident, with 10,000 jobs held", f"{memory:.0f} MB", "<= 42 MB"),
    ]


def ensure(site: Site) -> Rows:
    """Ask ``ensure`` for a running executor, through the gate, and make a bare pyzmq round trip."""
    site.helper.start()
    user = site.accounts.user("alice")
    bare = f"ipc://{site.installation.run}/bare.sock"
    threading.Thread(target=_echo, args=(bare, 2000), daemon=True).start()
    ours = _as_listener(lambda: _round_trips(f"ipc://{site.installation.socket}", user.name, 2000))
    alone = _round_trips(bare, user.name, 2000)
    memory = f"supervisor {_rss(site.helper.pid):.0f}, gate {_rss(_gate(site.helper.pid)):.0f} MB"
    return [
        ("ensure round trip, executor running, through the gate, median / p99", _spread(ours), "<= 0.4 ms"),
        ("bare pyzmq round trip", _spread(alone), "-"),
        ("supervisor and gate, resident", memory, "<= 22, <= 24 MB"),
    ]


def memory(site: Site) -> Rows:
    """Resident memory of the listener, idle."""
    site.start()
    time.sleep(1.0)
    return [("listener, resident, idle", f"{_rss(site.listener.pid):.0f} MB", "<= 34 MB")]


CONNECTS = """\
#!/usr/bin/python3 -IS
import _socket, _signal
connection = _socket.socket()
connection.connect(("127.0.0.1", {port}))
while True:
    _signal.pause()
"""

MEASUREMENTS: dict[str, Callable[[Site], Rows]] = {
    "hand_over": hand_over,
    "new_users": new_users,
    "jobs_a_second": jobs_a_second,
    "two_hundred_jobs": two_hundred_jobs,
    "ten_users": ten_users,
    "busy_user": busy_user,
    "ensure": ensure,
    "memory": memory,
}


def _install_executor_that_only_connects(site: Site) -> None:
    program = site.installation.knime_home / "knime"
    program.write_text(CONNECTS.format(port=site.broker.port), encoding="ascii")


class _Sink:
    """Counts what was handed over: a queue of its own behind the routing key, so that nothing comes back."""

    def __init__(self, site: Site) -> None:
        self._channel = site.server.channel
        self._channel.queue_declare("done")
        self._channel.queue_bind("done", JOBS_EXCHANGE, "done")

    def count(self) -> int:
        count: int = self._channel.queue_declare("done", passive=True).method.message_count
        return count

    def empty(self) -> None:
        self._channel.queue_purge("done")


def _rate(site: Site, sink: _Sink, users: list[str], jobs: int) -> float:
    """Give the jobs a second of what consumes the queue, from a full queue on."""
    sink.empty()
    properties = pika.BasicProperties(headers={"canHandle": False}, delivery_mode=1)
    began = time.monotonic()
    for number in range(jobs):
        body = json.dumps({"user": users[number % len(users)], "job": number}).encode()
        site.server.publish_raw(body, properties)
    wait_for(lambda: sink.count() >= jobs, 60, f"{jobs} jobs handed over")
    return jobs / (time.monotonic() - began)


def _two_hundred(site: Site, user: str) -> tuple[float, int]:
    began = time.time()
    jobs = [site.server.publish(user, seconds=0.02) for _ in range(200)]
    reports = site.server.results(200, seconds=120)
    order = [jobs.index(report["job"]) for report in reports]
    inverted = sum(after < before for before, after in pairwise(order))
    return max(report["done"] for report in reports) - began, inverted


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


def _as_listener(measure: Callable[[], list[float]]) -> list[float]:
    """Run it in a child with the listener's uid, which alone may ask."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            uid = uid_of(LISTENER) or -1
            os.setgroups([])
            os.setresgid(uid_gid(uid), uid_gid(uid), uid_gid(uid))
            os.setresuid(uid, uid, uid)
            os.write(writing, json.dumps([round(value, 4) for value in measure()]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    values: list[float] = json.loads(text)
    return values


def uid_gid(uid: int) -> int:
    """Give the primary gid of a uid."""
    import pwd

    return pwd.getpwuid(uid).pw_gid


def _gate(supervisor: int) -> int:
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(encoding="ascii").split()
    return next(int(pid) for pid in children if b"gate.py" in Path(f"/proc/{pid}/cmdline").read_bytes())


def _rss(pid: int) -> float:
    """Give the resident memory in MB: VmRSS, proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _cpu(pid: int) -> float:
    """Give the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _spread(milliseconds: list[float]) -> str:
    ordered = sorted(milliseconds)
    return f"{statistics.median(ordered):.2f} / {ordered[int(len(ordered) * 0.99)]:.2f} ms"


if __name__ == "__main__":
    main()
