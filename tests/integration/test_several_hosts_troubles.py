"""Several hosts on one queue, and what keeps them from hearing each other: each job runs all the same.

Each host is both daemons in a network of its own. What leaves the hosts as it found them shares them with others.
"""

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pika
import pytest

from tests.lab.broker_node import BrokerNode
from tests.lab.processes import wait_for
from tests.lab.several_hosts import DEAD_AFTER, Host, SeveralHosts

pytestmark = [pytest.mark.nightly, pytest.mark.needs("network namespace")]
EXCHANGE = "knime-peruser.hosts"


@pytest.fixture(scope="module")
def running(broker: BrokerNode) -> Iterator[SeveralHosts]:
    """Give hosts that run all the time, one executor a user."""
    with made(broker) as site:
        site.start(1)
        yield site


@pytest.fixture
def site(running: SeveralHosts) -> SeveralHosts:
    running.wait_until_they_know_each_other()
    return running


@contextmanager
def made(broker: BrokerNode) -> Iterator[SeveralHosts]:
    site = SeveralHosts(broker)
    try:
        site.create()
        yield site
    finally:
        site.remove()


def test_a_host_whose_helper_hangs_is_replaced_and_takes_part_again_when_it_goes_on(site: SeveralHosts) -> None:
    host = site.hosts[0]
    alice, bob, carol = (site.user(name) for name in names_of(site, host, 3))
    hung = host.helper.pid
    os.kill(hung, signal.SIGSTOP)
    try:
        began = time.monotonic()
        jobs = {(site.server.publish(user.name), user.uid) for user in (alice, bob, carol)}  # each meets another host
        assert {(report["job"], report["uid"]) for report in site.server.results(3, 40)} == jobs
        print(f"replaced after {time.monotonic() - began:.1f} s")
        assert all(site.live(user).total() == 1 and host.name not in site.live(user) for user in (alice, bob, carol))
        others = [other for other in site.hosts if other is not host]
        wait_for(lambda: all(free(other, host) == 0 for other in others), 30, "others who ask it for nothing")
    finally:
        os.kill(hung, signal.SIGCONT)
    site.wait_until_they_know_each_other()
    again = {site.server.publish(user.name) for user in (alice, bob, carol)}
    assert {report["job"] for report in site.server.results(3, 30)} == again
    for user in (alice, bob, carol):
        assert site.live(user).total() <= 2, "one too many at most: what it was asked for when it hung it may start now"


def test_during_a_long_alarm_of_the_broker_nobody_is_taken_to_be_dead(site: SeveralHosts) -> None:
    users = [site.user(f"m{number}") for number in range(4)]
    for user in users:
        site.server.publish(user.name)
    site.server.results(4, 30)
    starts = [[host.starts(user) for host in site.hosts] for user in users]
    site.broker.ctl("set_vm_memory_high_watermark", "0.0")
    try:
        wait_for(lambda: all(connection(host)["state"] == "blocked" for host in site.hosts), 20, "blocked connections")
        until = time.monotonic() + 2 * DEAD_AFTER
        while time.monotonic() < until:
            assert [len(host.status()["cluster"]["hosts"]) for host in site.hosts] == [3, 3, 3]
            time.sleep(0.1)
    finally:
        site.broker.ctl("set_vm_memory_high_watermark", "0.4")
    jobs = {site.server.publish(user.name) for user in users for _ in range(3)}
    assert {report["job"] for report in site.server.results(12, 30)} == jobs
    site.wait_until_they_know_each_other()
    assert [[host.starts(user) for host in site.hosts] for user in users] == starts


@pytest.mark.parametrize("anew", [False, True], ids=["deleted", "deleted and made anew"])
def test_hosts_whose_exchange_was_deleted_find_each_other_again(site: SeveralHosts, *, anew: bool) -> None:
    """Where it is made anew at once, publishing goes on without an error: but no queue is bound to it any more."""
    before = {host: connection(host)["since"] for host in site.hosts}
    with channel_of_an_administrator(site) as channel:
        channel.exchange_delete(EXCHANGE)
        if anew:
            channel.exchange_declare(EXCHANGE, "fanout", durable=True)
    wait_for(
        lambda: all(connection(host)["since"] > since + 0.1 for host, since in before.items()), 20, "new connections"
    )
    site.wait_until_they_know_each_other()
    alice = site.user(f"again{anew:d}")
    job = site.server.publish(alice.name)
    assert [report["job"] for report in site.server.results(1, 30)] == [job]
    assert site.live(alice).total() == 1


def test_a_flood_of_messages_of_another_account_keeps_no_job_waiting(site: SeveralHosts) -> None:
    alice = site.user("flood")
    before = [host.status()["cluster"]["ignored"] for host in site.hosts]
    with channel_of_an_administrator(site) as channel:
        for _ in range(20_000):
            channel.basic_publish(EXCHANGE, "", b"x" * 500, pika.BasicProperties(user_id="knime-server"))
    jobs = {site.server.publish(alice.name) for _ in range(5)}
    assert {report["job"] for report in site.server.results(5, 30)} == jobs
    after = [host.status()["cluster"]["ignored"] for host in site.hosts]
    assert all(now > then for now, then in zip(after, before, strict=True))
    site.wait_until_they_know_each_other()


def test_where_the_exchange_cannot_be_used_each_host_serves_alone_and_says_why_until_it_can(broker: BrokerNode) -> None:
    with made(broker) as site:
        site.server.channel.exchange_declare(EXCHANGE, "direct")
        site.start(1, wait=False)
        users = [site.user(f"u{number}") for number in range(3)]
        jobs = {site.server.publish(user.name) for user in users for _ in range(3)}
        assert {report["job"] for report in site.server.results(9, 40)} == jobs
        for host in site.hosts:
            assert connection(host)["state"] == "down"
            assert f"406 PRECONDITION_FAILED - inequivalent arg 'type' for exchange '{EXCHANGE}'" in why(host)
            assert "(delete it" in why(host)
        rights = site.broker.listener.permissions
        without = (rights[0], rights[1].replace(r"knime-peruser\..*", r"knime-peruser\.no.*"), rights[2])
        site.broker.ctl("set_permissions", "-p", site.vhost, "knime-listener", *without)
        site.server.channel.exchange_delete(EXCHANGE)
        wait_for(lambda: all("403 ACCESS_REFUSED" in why(host) for host in site.hosts), 20, "refusals that are told")
        jobs = {site.server.publish(user.name) for user in users for _ in range(3)}
        assert {report["job"] for report in site.server.results(9, 40)} == jobs
        site.broker.ctl("set_permissions", "-p", site.vhost, "knime-listener", *rights)
        site.wait_until_they_know_each_other()


@contextmanager
def channel_of_an_administrator(site: SeveralHosts) -> Iterator[pika.channel.Channel]:
    connection = pika.BlockingConnection(pika.URLParameters(site.broker.server.at(site.broker.port, site.vhost)))
    try:
        yield connection.channel()
    finally:
        with suppress(pika.exceptions.AMQPError):
            connection.close()


def names_of(site: SeveralHosts, host: Host, count: int) -> list[str]:
    """Give names of users whose one executor this host is to run: rendezvous hashing."""

    def weight(user: str, one: Host) -> bytes:
        text = f"{site.accounts.prefix}{user}\0{one.name}"
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    names = (f"h{number}" for number in range(100))
    return [name for name in names if max(site.hosts, key=lambda one: weight(name, one)) is host][:count]


def free(seen_by: Host, host: Host) -> int:
    (found,) = (one["free"] for one in seen_by.status()["cluster"]["hosts"] if one["host"] == host.name)
    return int(found)


def connection(host: Host) -> dict[str, Any]:
    """Give how the host's connection to the others is."""
    return dict(host.status()["connections"]["hosts"])


def why(host: Host) -> str:
    return str(connection(host)["why"])
