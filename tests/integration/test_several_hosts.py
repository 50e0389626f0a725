"""Several hosts on one queue: each job runs, and each user has executors on as many hosts as the site wants.

Each host is both daemons in a network of its own. Beats are ten times as frequent as by default, so that a death is
noticed in two seconds and not in fifteen.
"""

import json
import time
from collections.abc import Iterator
from itertools import cycle

import pika
import pytest

from tests.lab.accounts import OsUser
from tests.lab.broker_node import BrokerNode
from tests.lab.processes import wait_for
from tests.lab.several_hosts import Host, SeveralHosts

pytestmark = pytest.mark.needs("network namespace")


@pytest.fixture
def site(broker: BrokerNode) -> Iterator[SeveralHosts]:
    made = SeveralHosts(broker)
    try:
        made.create()
        yield made
    finally:
        made.remove()


@pytest.mark.parametrize(("wanted", "expected"), [("all", 3), (1, 1), (2, 2)])
def test_each_user_has_executors_on_as_many_hosts_as_wanted_and_each_job_runs(
    site: SeveralHosts, wanted: object, expected: int
) -> None:
    site.start(wanted)
    users = [site.user(f"u{number}") for number in range(6)]
    for _ in range(2):
        for user in users:
            site.server.publish(user.name)
    reports = site.server.results(12, 30)
    assert {report["user"]: report["uid"] for report in reports} == {user.name: user.uid for user in users}
    jobs_until_executors(site, users, expected)
    assert [sum(host.starts(user) for host in site.hosts) for user in users] == [expected] * len(users)


def test_a_job_that_meets_another_host_is_handed_over_there_and_its_helper_is_not_asked(site: SeveralHosts) -> None:
    site.start(1)
    alice = site.user("alice")
    site.server.publish(alice.name)
    site.server.results(1)
    has = the_host_of(site, alice)
    others = [host for host in site.hosts if host is not has]
    for count in range(1, 41):  # different numbers: consumers take turns, and one at a time may always meet the same
        for _ in range(count):
            site.server.publish(alice.name)
        site.server.results(count)
        if all(handed_over(host, alice.name) for host in others):
            break
    assert all(handed_over(host, alice.name) for host in others)
    assert [host.starts(alice) for host in others] == [0, 0]
    assert all(not asked(host, alice.name) for host in others)


def test_what_is_held_elsewhere_goes_when_the_one_executor_is_ready(site: SeveralHosts) -> None:
    site.start(1, knime={"start_time": 1.5})
    alice = site.user("alice")
    jobs = [site.server.publish(alice.name) for _ in range(12)]  # they meet all three hosts
    assert {report["job"] for report in site.server.results(12, 30)} == set(jobs)
    assert sum(host.starts(alice) for host in site.hosts) == 1


def test_a_host_that_is_killed_in_mid_start_is_replaced_and_each_job_runs(site: SeveralHosts) -> None:
    site.start(1, knime={"start_time": 2.0})
    users = [site.user(f"u{number}") for number in range(4)]
    jobs = {site.server.publish(user.name) for user in users}
    wait_for(lambda: sum(sum(site.live(user).values()) for user in users) == 4, 20, "four executors that start")
    victim = the_host_of(site, users[0])
    victim.kill(site.users)
    assert {report["job"] for report in site.server.results(4, 40)} == jobs
    assert all(victim.name not in site.live(user) for user in users)
    assert [site.live(user).total() for user in users] == [1] * 4


def test_each_host_in_turn_is_drained_and_its_listener_restarted_under_load_and_no_job_is_lost(
    site: SeveralHosts,
) -> None:
    site.start(1)
    users = iter([site.user(f"u{number}") for number in range(9)])
    known = [next(users) for _ in range(3)]
    jobs = [site.server.publish(user.name) for user in known]
    for host in site.hosts:
        host.operator("drain", on=True)
        others = [other for other in site.hosts if other is not host]
        wait_for(lambda host=host, others=others: all(state(o, host) == "draining" for o in others), 30, "a drain")
        newcomers = [next(users), next(users)]
        jobs += [site.server.publish(user.name) for user in (*newcomers, *known) for _ in range(5)]
        host.restart_listener()
        jobs += [site.server.publish(user.name) for user in (*newcomers, *known) for _ in range(5)]
        for user in newcomers:
            site.wait_for_executors(user, 1)
            assert host.name not in site.live(user)
        host.operator("drain", on=False)
        site.wait_until_they_know_each_other()
        known += newcomers
    reports = site.server.results(len(jobs), 40)
    assert {report["job"] for report in reports} >= set(jobs)
    uids = {user.name: user.uid for user in site.users}
    assert all(report["uid"] == uids[report["user"]] for report in reports)


def test_where_all_are_full_a_job_waits_and_runs_when_one_host_is_free_again(site: SeveralHosts) -> None:
    site.start(1, helper={"limits": {"max_executors": 1}})
    first = [site.user(f"u{number}") for number in range(3)]
    for user in first:
        site.server.publish(user.name)
        site.server.results(1, 30)  # one after the other: each meets a host that is free
    late = site.user("late")
    job = site.server.publish(late.name)
    wait_for(lambda: why_not(site, late.name) == {"no_host_free"}, 30, "a user for whom there is no room")
    has = the_host_of(site, first[1])
    has.operator("stop", user=first[1].name)
    (report,) = site.server.results(1, 20)
    assert (report["job"], report["uid"]) == (job, late.uid)
    assert the_host_of(site, late) is has


def test_a_host_that_is_cut_off_is_replaced_and_takes_part_again_when_the_way_is_mended(site: SeveralHosts) -> None:
    site.start(1)
    users = [site.user(f"u{number}") for number in range(6)]
    for user in users:
        site.server.publish(user.name)
    site.server.results(6, 30)
    lost = the_host_of(site, users[0])
    rest = [host for host in site.hosts if host is not lost]
    lost.network.cut()
    wait_for(lambda: all(state(host, lost) is None for host in rest), 30, "the others' knowledge of its death")
    jobs = [site.server.publish(user.name) for user in users]
    assert {report["job"] for report in site.server.results(6, 30)} == set(jobs)
    lost.network.mend()
    site.wait_until_they_know_each_other()
    newcomers = [site.user(f"n{number}") for number in range(6)]
    for user in newcomers:
        site.server.publish(user.name)
    site.server.results(6, 30)
    for user in newcomers:
        assert site.live(user).total() == 1, "no more than wanted"
    assert all(site.live(user).total() <= 2 for user in users), "one too many at most"


def test_a_ready_of_another_account_is_not_believed(site: SeveralHosts) -> None:
    """It would have every job of the user handed over to nobody."""
    site.start(1, knime={"start_time": 1.0})
    alice = site.user("alice")
    before = [host.status()["cluster"]["ignored"] for host in site.hosts]
    for user_id in (None, "knime-server"):
        for seq, forged in enumerate(({"kind": "beat", "state": "up", "free": 9}, ready(alice.name))):
            message = {"v": 1, "host": "z", "boot": "0" * 16, "seq": seq, **forged}
            properties = pika.BasicProperties(user_id=user_id)
            site.server.channel.basic_publish("knime-peruser.hosts", "", json.dumps(message).encode(), properties)
    wait_for(
        lambda: [host.status()["cluster"]["ignored"] for host in site.hosts] == [count + 4 for count in before],
        30,
        "messages that each host ignores",
    )
    assert all(len(host.status()["cluster"]["hosts"]) == 3 for host in site.hosts)
    site.server.publish(alice.name)
    (report,) = site.server.results(1)
    assert report["uid"] == alice.uid


def test_executors_may_neither_listen_nor_speak(site: SeveralHosts) -> None:
    site.start(1)
    url = site.broker.executors.at(site.broker.port, site.vhost)
    for attempt in (
        lambda channel: channel.basic_publish("knime-peruser.hosts", "", b"{}", mandatory=True),
        lambda channel: channel.queue_declare("knime-peruser.hosts.z.0", exclusive=True),
        lambda channel: channel.queue_bind("knime-jobs", "knime-peruser.hosts"),
    ):
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            attempt(channel)
        connection.close()


def test_without_the_cluster_a_second_host_on_the_queue_does_no_harm(site: SeveralHosts) -> None:
    site.start(cluster=False)
    users = [site.user(f"u{number}") for number in range(4)]
    jobs = [site.server.publish(user.name) for user in users for _ in range(6)]
    reports = site.server.results(24, 30)
    assert {report["job"] for report in reports} == set(jobs)
    uids = {user.name: user.uid for user in users}
    assert all(report["uid"] == uids[report["user"]] for report in reports)
    assert all(host.status()["cluster"] is None for host in site.hosts)


@pytest.mark.needs("time namespace")
def test_clocks_an_hour_apart_make_no_difference(broker: BrokerNode) -> None:
    site = SeveralHosts(broker, clocks_ahead={1: 3600, 2: 86400})
    try:
        site.create()
        site.start(2)
        users = [site.user(f"u{number}") for number in range(4)]
        jobs_until_executors(site, users, 2)
        victim = the_host_of(site, users[0])
        victim.kill(site.users)
        wait_for(lambda: all(state(host, victim) is None for host in site.hosts if host is not victim), 30, "its death")
        jobs_until_executors(site, users, 2)
    finally:
        site.remove()


def jobs_until_executors(site: SeveralHosts, users: list[OsUser], count: int) -> None:
    """Send the users' jobs, which are what makes hosts look who is to run what, until the numbers are as wanted."""
    deadline, order, extras = time.monotonic() + 40, cycle(users), cycle(range(4))
    while any(len(site.live(user)) != count for user in users):
        assert time.monotonic() < deadline, [site.live(user) for user in users]
        extra = [next(order) for _ in range(next(extras))]  # else the same job may always meet the same consumer
        for user in (*users, *extra):
            site.server.publish(user.name)
        site.server.results(len(users) + len(extra), 30)


def the_host_of(site: SeveralHosts, user: OsUser) -> Host:
    (name, *_) = site.live(user)
    return next(host for host in site.hosts if host.name == name)


def state(seen_by: Host, host: Host) -> str | None:
    """Give a host's state as another sees it, None where it is not known there."""
    hosts = {one["host"]: one["state"] for one in seen_by.status()["cluster"]["hosts"]}
    return hosts.get(host.name)


def why_not(site: SeveralHosts, user: str) -> set[str]:
    """Give why the user has no executor, of the hosts that hold jobs of the user."""
    users = [one for host in site.hosts for one in host.status()["users"] if one["user"] == user and one["held"]]
    return {one["reason"] for one in users}


def ready(user: str) -> dict[str, str]:
    return {"kind": "user", "user": user, "state": "ready"}


def handed_over(host: Host, user: str) -> bool:
    return f"event=handed_over user={user} " in host.listener.log_text()


def asked(host: Host, user: str) -> bool:
    log = host.installation.audit_log
    return log.exists() and user in log.read_text("ascii")
