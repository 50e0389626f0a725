"""What the measurements share: a queue that takes what was handed over, stand-ins that cost nothing, and meters."""

import itertools
import json
import os
import pwd
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pika
import zmq

from tests.lab.accounts import LISTENER, uid_of
from tests.lab.broker_node import JOBS_EXCHANGE
from tests.lab.processes import wait_for
from tests.lab.site import Site

Rows = list[tuple[str, str, str]]
TO_SINK = {"broker": {"routing_key": "done"}}
"""The listener's configuration with which hand-overs go to ``Sink``, so that nothing comes back."""


_NUMBERS = itertools.count()


class Sink:
    """A queue of its own behind the routing key ``done``."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._received: set[bytes] = set()
        self.declare()

    def declare(self) -> None:
        """Declare it, after the broker was away once more."""
        channel = self._site.server.channel
        channel.queue_declare("done", durable=True)
        channel.queue_bind("done", JOBS_EXCHANGE, "done")

    def count(self) -> int:
        """Count what was handed over."""
        count: int = self._site.server.channel.queue_declare("done", passive=True).method.message_count
        return count

    def wait(self, count: int, seconds: float = 60.0) -> None:
        """Wait until so many were handed over."""
        wait_for(lambda: self.count() >= count, seconds, f"{count} jobs handed over")

    def empty(self) -> None:
        """Forget what was handed over."""
        self._site.server.channel.queue_purge("done")

    def bodies(self) -> list[bytes]:
        """Take and give what was handed over."""
        channel = self._site.server.channel
        taken: list[bytes] = []
        tag = channel.basic_consume("done", lambda _c, _m, _p, body: taken.append(body), auto_ack=True)
        before = -1
        while len(taken) > before:
            before = len(taken)
            channel.connection.process_data_events(time_limit=0.5)
        channel.basic_cancel(tag)
        return taken

    def latencies(self, user: str, count: int) -> list[float]:
        """Give the milliseconds from publishing a job to its receipt behind the listener, one job after the other."""
        channel = self._site.server.channel
        tag = channel.basic_consume("done", lambda _c, _m, _p, body: self._received.add(body), auto_ack=True)
        taken = [self._latency(user, number) for number in range(count)]
        channel.basic_cancel(tag)
        return taken[count // 10 :]

    def _latency(self, user: str, number: int) -> float:
        body = json.dumps({"user": user, "job": f"latency {time.time()} {number}"}).encode()
        began = time.perf_counter()
        publish(self._site, body)
        while body not in self._received:
            if time.perf_counter() > began + 30:
                raise TimeoutError(f"a job of {user} was not handed over within 30 s")
            self._site.server.channel.connection.process_data_events(time_limit=1.0)
        took = time.perf_counter() - began
        self._received.clear()
        time.sleep(0.005)
        return took * 1000


class AnsweringHelper:
    """Stands in for the root helper where thousands of users are to be known: each of them has an executor, it says."""

    def __init__(self, site: Site) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(f"ipc://{site.installation.socket}")
        os.chown(site.installation.socket, 0, pwd.getpwnam(LISTENER).pw_gid)
        site.installation.socket.chmod(0o660)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._ended.is_set():
            if self._socket.poll(100):
                peer, frame = self._socket.recv_multipart()
                self._socket.send_multipart([peer, _answer(json.loads(frame))])
        self._context.destroy(0)


def _answer(asked: dict[str, str]) -> bytes:
    answer: dict[str, object] = {"result": "executors", "executors": [], "next": None, "draining": False, "free": 100}
    if asked["op"] == "ensure":
        executor = {"os_user": asked["user"], "uid": 54321, "pid": 1, "since": 0.0, "cgroup": None}
        answer = {"result": "running", **executor}
    return json.dumps({"v": 1, "id": asked["id"], **answer}).encode()


CONNECTS = """\
#!/usr/bin/python3 -IS
import _socket, _signal
connection = _socket.socket()
connection.connect(("127.0.0.1", {port}))
while True:
    _signal.pause()
"""


def install_executor_that_only_connects(site: Site) -> None:
    """Have users' executors connect at once, consume nothing and cost nothing."""
    program = site.installation.knime_home / "knime"
    program.write_text(CONNECTS.format(port=site.broker.port), encoding="ascii")


def publish(site: Site, body: bytes, delivery_mode: int = 1) -> None:
    """Publish a job as KNIME Server does."""
    site.server.publish_raw(body, pika.BasicProperties(headers={"canHandle": False}, delivery_mode=delivery_mode))


def publish_jobs(site: Site, users: Sequence[str], jobs: int, delivery_mode: int = 1) -> None:
    """Publish so many small jobs, users by turns; no two are alike, or one would count as the other come back."""
    for number in range(jobs):
        body = json.dumps({"user": users[number % len(users)], "job": next(_NUMBERS)}).encode()
        publish(site, body, delivery_mode)


def rss(pid: int) -> float:
    """Give the resident memory in MB: VmRSS, proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def spread(milliseconds: Sequence[float]) -> str:
    """Give median and 99th percentile."""
    ordered = sorted(milliseconds)
    return f"{statistics.median(ordered):.2f} / {ordered[int(len(ordered) * 0.99)]:.2f} ms"


def gate_of(supervisor: int) -> int:
    """Give the pid of the helper's gate."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(encoding="ascii").split()
    return next(int(pid) for pid in children if b"gate.py" in Path(f"/proc/{pid}/cmdline").read_bytes())


def as_listener(measure: Callable[[], list[float]]) -> list[float]:
    """Run it in a child with the listener's uid, which alone may ask the helper."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            uid = uid_of(LISTENER) or -1
            gid = pwd.getpwuid(uid).pw_gid
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(writing, json.dumps([round(value, 4) for value in measure()]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    values: list[float] = json.loads(text)
    return values
