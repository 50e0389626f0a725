"""What the benches share: where handed over jobs are counted, a queue without a listener, executors that cost nothing.

A bench that takes a shortcut (an executor that only connects, a destination behind a routing key of its own) says so
in its docstring, since that is how it could lie.
"""

import itertools
import json
import pwd
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import pika

from tests.lab.broker_node import JOBS_EXCHANGE, BrokerNode
from tests.lab.chaos import listener_status
from tests.lab.processes import cpu_seconds, wait_for
from tests.lab.site import Site
from tests.simulated_knime.server import SimulatedServer

TO_SINK: Final[dict[str, dict[str, object]]] = {"broker": {"routing_key": "done"}}
"""The listener's configuration with which hand-overs go to ``Sink``, so that nothing comes back."""
CONNECTS: Final = """\
#!/usr/bin/python3 -IS
import _socket, _signal
connection = _socket.socket()
connection.connect(("127.0.0.1", {port}))
while True:
    _signal.pause()
"""
NEVER_CONNECTS: Final = """\
#!/usr/bin/python3 -IS
import _signal
while True:
    _signal.pause()
"""
_NUMBERS: Final = itertools.count()


class HasServer(Protocol):
    """Somewhere with KNIME Server's side of a broker."""

    @property
    def server(self) -> SimulatedServer:
        """The connection of KNIME Server's account."""


class Place(HasServer, Protocol):
    """A virtual host, with a listener or without."""

    broker: BrokerNode
    vhost: str


class WithoutListener:
    """A virtual host of the site's broker with the same queue, exchange and accounts, and no listener: the control."""

    def __init__(self, site: Site) -> None:
        self.broker = site.broker
        self.vhost = self.broker.vhosts.take()
        self.server = SimulatedServer(self.broker.server.at(self.broker.port, self.vhost))


@contextmanager
def without_listener(site: Site) -> Iterator[WithoutListener]:
    """Give the control, and take it away."""
    made = WithoutListener(site)
    try:
        yield made
    finally:
        made.server.close()
        made.broker.vhosts.give_back(made.vhost)


def url_of(place: Place, account: Literal["server", "listener", "executors"] = "server") -> str:
    """Return the URL with which an account reaches a virtual host."""
    broker = place.broker
    of = {"server": broker.server, "listener": broker.listener, "executors": broker.executors}[account]
    return of.at(broker.port, place.vhost)


class Sink:
    """A queue of its own behind the routing key ``done``: where jobs are counted when they have arrived."""

    def __init__(self, site: HasServer) -> None:
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
        """Take and return what was handed over, until nothing comes for half a second."""
        channel = self._site.server.channel
        taken: list[bytes] = []
        tag = channel.basic_consume("done", lambda _c, _m, _p, body: taken.append(body), auto_ack=True)
        before = -1
        while len(taken) > before:
            before = len(taken)
            channel.connection.process_data_events(time_limit=0.5)
        channel.basic_cancel(tag)
        return taken

    def expect(self, bodies: Sequence[bytes]) -> None:
        """Take what was handed over; raises RuntimeError unless it is these bodies, each once."""
        expected, taken = Counter(bodies), Counter(self.bodies())
        if taken != expected:
            lost, more = (expected - taken).total(), (taken - expected).total()
            raise RuntimeError(f"of {len(bodies)} jobs {lost} did not arrive, {more} that arrived are too many")

    def latencies(self, user: str, count: int, wait: float = 30.0) -> list[float]:
        """Return the milliseconds from publishing a job to its receipt behind the listener, one after the other."""
        channel = self._site.server.channel
        tag = channel.basic_consume("done", lambda _c, _m, _p, body: self._received.add(body), auto_ack=True)
        try:
            return [self._latency(user, number, wait) for number in range(count)]
        finally:
            channel.basic_cancel(tag)
            self._received.clear()

    def _latency(self, user: str, number: int, wait: float) -> float:
        body = json.dumps({"user": user, "job": f"latency {time.time()} {number}"}).encode()
        began = time.perf_counter()
        publish(self._site, body)
        while body not in self._received:
            if time.perf_counter() > began + wait:
                raise TimeoutError(f"a job of {user} was not handed over within {wait} s")
            self._site.server.channel.connection.process_data_events(time_limit=1.0)
        took = time.perf_counter() - began
        self._received.clear()
        time.sleep(0.005)
        return took * 1000


def install_executor_that_only_connects(site: Site) -> None:
    """Have users' executors connect at once, consume nothing and cost nothing."""
    program = site.installation.knime_home / "knime"
    program.write_text(CONNECTS.format(port=site.broker.port), encoding="ascii")


def ready_users(site: Site, sink: Sink, count: int) -> list[str]:
    """Make users, have an executor that only connects started for each, and wait until the listener calls it ready."""
    install_executor_that_only_connects(site)
    users = [site.accounts.user(f"u{number}").name for number in range(count)]
    publish_jobs(site, users, count)
    sink.wait(count)
    wait_for(lambda: all(one["state"] == "ready" for one in users_of(site)), 20, "all users ready")
    sink.empty()
    return users


def users_of(site: Site) -> list[dict[str, Any]]:
    """Return what the listener says of each user."""
    users: list[dict[str, Any]] = listener_status(site)["users"]
    return users


def limits(**more: object) -> Mapping[str, Mapping[str, object]]:
    """Return a helper's configuration whose limits on starts are not what is measured."""
    return {"limits": {"starts_per_user_per_minute": 1000, "starts_per_second": 1000, **more}}


def publish(site: HasServer, body: bytes, delivery_mode: int = 1, routing_key: str | None = None) -> None:
    """Publish a job as KNIME Server does."""
    properties = pika.BasicProperties(headers={"canHandle": False}, delivery_mode=delivery_mode)
    server = site.server
    server.channel.basic_publish(server.exchange, routing_key or server.routing_key, body, properties)


def bodies(users: Sequence[str], jobs: int, size: int = 0) -> list[bytes]:
    """Return so many jobs, users by turns, each of ``size`` bytes if that is more than it needs.

    No two are alike, or one would count as the other come back.
    """
    made = []
    for number in range(jobs):
        job = {"user": users[number % len(users)], "job": next(_NUMBERS), "padding": ""}
        job["padding"] = "x" * max(0, size - len(json.dumps(job)))
        made.append(json.dumps(job).encode())
    return made


def publish_jobs(site: HasServer, users: Sequence[str], jobs: int, delivery_mode: int = 1) -> None:
    """Publish so many small jobs, users by turns."""
    for body in bodies(users, jobs):
        publish(site, body, delivery_mode)


def rss(pid: int) -> float:
    """Return the resident memory in MB: VmRSS, proc(5)."""
    return _status(pid, "VmRSS")


def peak(pid: int) -> float:
    """Return the largest resident memory since ``forget_peak`` in MB: VmHWM, proc(5)."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Let the peak be what is resident now: clear_refs, proc(5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def share_of_a_core(pid: int, seconds: float) -> float:
    """Return the processor time that a process uses in an interval, in percent of a core."""
    used, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)  # what is measured is an interval
    return 100 * (cpu_seconds(pid) - used) / (time.monotonic() - began)


def ids_of(account: str) -> tuple[int, int]:
    """Return an account's uid and gid."""
    entry = pwd.getpwnam(account)
    return entry.pw_uid, entry.pw_gid


def _status(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
