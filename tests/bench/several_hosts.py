"""How soon other hosts know: a job that meets the host without the executor, a first job held there, a host that dies.

Two or three real hosts on a private broker, each with both daemons and a network of its own; executors connect and do
nothing else, and what a host hands over goes to a queue of its own. ``python3 -m tests.bench.several_hosts``, as root;
one table, nothing here is an assertion.
"""

import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.bench.instruments import CONNECTS
from tests.bench.table import Rows
from tests.lab.accounts import OsUser, run_prefix
from tests.lab.broker_node import JOBS_EXCHANGE, BrokerNode
from tests.lab.processes import wait_for
from tests.lab.several_hosts import Host, SeveralHosts
from tests.lab.site import LAB

JOBS = 1000
USERS = 40
TIMES = {"heartbeat": 5.0, "dead_after": 15.0}
"""The defaults."""
STARTS = '#!/usr/bin/python3 -IS\nimport time\ntime.sleep(0.5)\nexec("""' + CONNECTS + '""")\n'
"""An executor that takes half a second until it connects."""


class Sinks:
    """What each host hands over, in a queue of the host's: body -> when it came, and of which host."""

    def __init__(self, site: SeveralHosts) -> None:
        self._site = site
        self.came: dict[str, tuple[float, str]] = {}
        channel = site.server.channel
        for host in site.hosts:
            channel.queue_declare(f"done-{host.name}")
            channel.queue_bind(f"done-{host.name}", JOBS_EXCHANGE, f"done-{host.name}")
            channel.basic_consume(f"done-{host.name}", self._taking(host.name), auto_ack=True)

    def wait(self, jobs: Sequence[str], seconds: float = 60.0) -> None:
        """Take what is handed over until all of these were."""
        deadline = time.perf_counter() + seconds
        while not all(job in self.came for job in jobs):
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{len(jobs)} jobs were not handed over within {seconds} s")
            self._site.server.channel.connection.process_data_events(time_limit=0.5)

    def _taking(self, host: str) -> Callable[..., None]:
        def taken(_channel: object, _method: object, _properties: object, body: bytes) -> None:
            self.came.setdefault(json.loads(body)["job"], (time.perf_counter(), host))

        return taken


def main() -> None:
    """Measure, and print one table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all is taken back
    node = BrokerNode(LAB / f"{run_prefix()}bench")
    rows: Rows = []
    try:
        node.create()
        node.start()
        for measure, hosts in ((executor_elsewhere, 2), (becomes_ready, 2), (host_dies, 3)):
            with running(node, hosts) as site:
                rows += measure(site, Sinks(site))
    finally:
        node.remove()
        print("| what | seen | goal |\n| --- | --- | --- |")
        for row in rows:
            print(f"| {' | '.join(row)} |")


@contextmanager
def running(broker: BrokerNode, count: int) -> Iterator[SeveralHosts]:
    """Give hosts that want one executor a user."""
    site = SeveralHosts(broker, count)
    try:
        site.create()
        for host in site.hosts:
            host.installation.write_helper_toml(users={"home_roots": [str(site.accounts.homes)]})
            cluster = {"enabled": True, "host": host.name, "executors_per_user": 1, **TIMES}
            host.installation.write_listener_toml(cluster=cluster, broker={"routing_key": f"done-{host.name}"})
            program = host.installation.knime_home / "knime"
            program.write_text(STARTS.format(port=broker.port), encoding="ascii")
            host.start()
        site.wait_until_they_know_each_other()
        time.sleep(1.5)  # after which executors are started
        yield site
    finally:
        site.remove()


def executor_elsewhere(site: SeveralHosts, sinks: Sinks) -> Rows:
    """From a job's publishing until a host has handed it over that has not the executor, beside one that has."""
    user = site.user("alice")
    sinks.wait([site.server.publish(user.name)])
    has = chosen(site, user)
    wait_for(lambda: _known_ready(site, user), 30, "hosts that know of the executor")
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(JOBS):
        began = time.perf_counter()
        job = site.server.publish(user.name)
        sinks.wait([job])
        when, by = sinks.came[job]
        took[by == has.name].append(1000 * (when - began))
        time.sleep(0.005)
    what = "from publishing a job until it is handed over, median / p99 / longest"
    return [
        (f"{what}: by the host with the executor", spread(took[True]), "-"),
        (f"{what}: by a host without", spread(took[False]), "50 ms"),
    ]


def becomes_ready(site: SeveralHosts, sinks: Sinks) -> Rows:
    """From the first hand-over by the host whose executor got ready until the other has handed over what it held."""
    later = []
    for number in range(USERS):
        user = site.user(f"u{number}")
        jobs = [site.server.publish(user.name) for _ in range(2)]  # one to each
        sinks.wait(jobs)
        came = {by: when for when, by in map(sinks.came.__getitem__, jobs)}
        if len(came) == len(site.hosts):
            (other,) = set(came) - {chosen(site, user).name}
            later.append(1000 * (came[other] - came[chosen(site, user).name]))
    what = f"ready on one host: what the other held is handed over so much later, {len(later)} users"
    return [(f"{what}, median / p99 / longest", spread(later), "50 ms")]


def host_dies(site: SeveralHosts, sinks: Sinks) -> Rows:
    """From a host's death until its users' executors run elsewhere, with jobs of them arriving all the time."""
    victim = site.hosts[0]
    users: list[OsUser] = []
    while len(users) < 5:
        user = site.user(f"v{len(site.users)}")
        sinks.wait([site.server.publish(user.name)])
        if chosen(site, user) is victim:
            users.append(user)
    began = time.perf_counter()
    victim.kill(site.users)
    replaced: dict[str, float] = {}
    while len(replaced) < len(users):
        for user in users:
            site.server.publish(user.name)
            if user.name not in replaced and site.live(user):
                replaced[user.name] = time.perf_counter() - began
        site.server.channel.connection.process_data_events(time_limit=0.2)
    what = f"a killed host: its users' executors run elsewhere after, dead_after {TIMES['dead_after']:.0f} s"
    return [(what, f"{min(replaced.values()):.1f} - {max(replaced.values()):.1f} s", "-")]


def chosen(site: SeveralHosts, user: OsUser) -> Host:
    """Give the host that is to run the user's one executor."""
    return max(
        site.hosts, key=lambda host: hashlib.blake2b(f"{user.name}\0{host.name}".encode(), digest_size=8).digest()
    )


def spread(milliseconds: Sequence[float]) -> str:
    """Give median, 99th percentile and longest."""
    ordered = sorted(milliseconds)
    return f"{ordered[len(ordered) // 2]:.1f} / {ordered[int(len(ordered) * 0.99)]:.1f} / {ordered[-1]:.1f} ms"


def _known_ready(site: SeveralHosts, user: OsUser) -> bool:
    executors = [host.status()["cluster"]["executors"] for host in site.hosts]
    return all([user.name, chosen(site, user).name, "ready"] in table for table in executors)


if __name__ == "__main__":
    main()
