"""A quorum queue drops what it redelivered too often: whatever counts there, no job is lost.

RabbitMQ 3.10 has the limit where a policy sets it, RabbitMQ 4 by default (tests/system/test_delivery_limit.py). What
others may do with a job is done by a bare consumer, what breaks is a proxy before the broker, or the listener itself.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pika
import pytest

from tests.lab.chaos import listener_status
from tests.lab.cutting_proxy import CuttingProxy
from tests.lab.processes import wait_for
from tests.lab.site import Site

LIMIT = 20
MODES = ("republish", "requeue")
QUEUES = ("classic", "quorum")


@pytest.fixture
def proxy(site: Site) -> Iterator[CuttingProxy]:
    made = CuttingProxy(site.broker.port)
    yield made
    made.close()


def prepare(site: Site, queue: str, proxy: CuttingProxy | None = None, mode: str = "republish") -> None:
    """Make the jobs queue, with a delivery limit where it is a quorum queue; configure and start the listener alone."""
    if queue == "quorum":
        site.server.channel.queue_delete(site.server.queue)
        site.server.queue_type = queue
        site.server.declare()
        set_limit(site, LIMIT)
    port = site.broker.port if proxy is None else proxy.port
    broker = {"urls": [site.broker.listener.at(port, site.vhost, with_password=False)]}
    hand_over = {"mode": mode, "ready": "delay", "ready_delay": 0.5}  # executors do not connect to the proxy's port
    site.installation.write_listener_toml(broker=broker, hand_over=hand_over)


def set_limit(site: Site, limit: int) -> None:
    definition = json.dumps({"delivery-limit": limit})
    site.broker.ctl("set_policy", "-p", site.vhost, "limit", "^knime-jobs$", definition, "--apply-to", "queues")


@contextmanager
def bare_channel(site: Site) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    parameters = pika.URLParameters(site.broker.executors.at(site.broker.port, site.vhost))
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection.channel()
    finally:
        connection.close()


def return_jobs(site: Site, jobs: int, times: int) -> None:
    """Have a foreign consumer take all jobs and give them back, so often."""
    with bare_channel(site) as channel:
        for _ in range(times):
            for _ in range(jobs):
                wait_for(lambda: channel.basic_get("knime-jobs")[0] is not None, 10, "a job in the queue")
            channel.basic_nack(0, multiple=True, requeue=True)


def holds(site: Site, jobs: int, received: int = 0) -> bool:
    """Return True if the listener holds that many jobs, has received so many in all, and nothing is on its way."""
    status = listener_status(site)
    quiet = not status["under_way"] and all(one["state"] == "up" for one in status["connections"].values())
    return quiet and status["held"]["jobs"] == jobs and status["totals"]["received"] >= received


def interrupt(site: Site, jobs: int, times: int, cut: Callable[[], object]) -> None:
    """Take the listener's deliveries away so often, each time when it holds them all again."""
    wait_for(lambda: holds(site, jobs), 20, "the jobs, held")
    for number in range(times):
        received = listener_status(site)["totals"]["received"]
        cut()
        wait_for(lambda received=received: holds(site, jobs, received + jobs), 20, f"the jobs, after cut {number + 1}")


def kill_and_start(site: Site) -> None:
    site.listener.kill()
    site.listener.start()


def assert_each_ran_once(site: Site, jobs: list[str]) -> None:
    site.helper.start()
    reports = site.server.results(len(jobs), seconds=60)
    assert sorted(report["job"] for report in reports) == sorted(jobs)
    assert site.server.further_results(0.5) == []


@contextmanager
def memory_alarm(site: Site) -> Iterator[None]:
    site.broker.ctl("set_vm_memory_high_watermark", "0")
    try:
        yield
    finally:
        site.broker.ctl("set_vm_memory_high_watermark", "0.4")


@pytest.mark.parametrize("mode", MODES)
def test_lost_connections_use_up_no_delivery_limit(site: Site, proxy: CuttingProxy, mode: str) -> None:
    """Others gave the jobs back eighteen times, then the listener's connections are cut four times: all jobs run."""
    prepare(site, "quorum", proxy, mode)
    users = [site.accounts.user(f"u{number}").name for number in range(4)]
    jobs = [site.server.publish(user) for user in users]
    return_jobs(site, len(jobs), 18)
    site.listener.start()
    interrupt(site, len(jobs), 4, proxy.cut)
    assert_each_ran_once(site, jobs)


def test_a_listener_killed_again_and_again_loses_no_held_job(site: Site) -> None:
    """A kill between the confirm and the ack would add a copy; here each comes when all is quiet."""
    prepare(site, "quorum")
    jobs = [site.server.publish(site.accounts.user("alice").name)]
    return_jobs(site, len(jobs), 18)
    site.listener.start()
    for _ in range(4):
        wait_for(lambda: holds(site, 1, 1), 20, "the job, held")
        kill_and_start(site)
    assert_each_ran_once(site, jobs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("queue", QUEUES)
def test_a_publisher_s_own_count_means_nothing(site: Site, proxy: CuttingProxy, queue: str, mode: str) -> None:
    """It is not published again before it was redelivered, and on a classic queue once at most: there it stays."""
    prepare(site, queue, proxy, mode)
    job = site.server.publish(site.accounts.user("alice").name, headers={"x-delivery-count": 100})
    site.listener.start()
    interrupt(site, 1, 3, proxy.cut)
    again = 0 if queue == "quorum" else 1
    assert listener_status(site)["totals"]["received"] == 4 + again
    assert site.listener.log_text().count("event=redelivered_often") == again
    assert_each_ran_once(site, [job])


def test_a_message_that_is_no_job_outlives_a_full_parked_queue(site: Site, proxy: CuttingProxy) -> None:
    """It is held until the parked queue takes it, whatever is cut meanwhile."""
    prepare(site, "quorum", proxy)
    full = json.dumps({"max-length": 0, "overflow": "reject-publish"})
    site.broker.ctl("set_policy", "-p", site.vhost, "full", "^knime-jobs.parked$", full, "--apply-to", "queues")
    site.server.publish_raw(b"junk")
    return_jobs(site, 1, 18)
    site.listener.start()
    site.listener.wait_for_log("event=not_parked")
    for number in range(4):
        received = listener_status(site)["totals"]["received"]
        proxy.cut()
        wait_for(
            lambda received=received: listener_status(site)["totals"]["received"] > received, 20, f"it, after {number}"
        )
    site.broker.ctl("clear_policy", "-p", site.vhost, "full")
    assert [parked.body for parked in site.server.parked(1, 60)] == [b"junk"]


@pytest.mark.parametrize("breaks", ["connections", "listener"])
def test_nothing_is_taken_that_could_not_be_published(site: Site, proxy: CuttingProxy, breaks: str) -> None:
    """Under an alarm a job that was redelivered often cannot be published: taken and lost again it would count on."""
    prepare(site, "quorum", proxy)
    jobs = [site.server.publish(site.accounts.user("alice").name)]
    return_jobs(site, 1, 9)
    site.listener.start()
    wait_for(lambda: holds(site, 1, 1), 20, "the job, held")
    with memory_alarm(site):
        for _ in range(12 if breaks == "connections" else 4):
            if breaks == "listener":
                kill_and_start(site)
            else:
                wait_for(lambda: proxy.connections == 2 and is_connected(site), 20, "two connections to cut")
                proxy.cut()
        wait_for(lambda: states(site) == {"blocked"}, 20, "a connection that the broker blocks, one that waits")
        status = listener_status(site)
        assert (status["held"]["jobs"], status["consuming"]) == (0, False)
        assert "published" in status["connections"]["consume"]["why"]
    assert_each_ran_once(site, jobs)


def is_connected(site: Site) -> bool:
    return "down" not in states(site)


def states(site: Site) -> set[str]:
    return {one["state"] for one in listener_status(site)["connections"].values()}


def test_a_policy_that_changes_meanwhile_loses_no_job(site: Site, proxy: CuttingProxy) -> None:
    """From no limit to the least that loses none, while the job has been redelivered eighteen times."""
    prepare(site, "quorum", proxy)
    set_limit(site, 200)
    jobs = [site.server.publish(site.accounts.user("alice").name)]
    return_jobs(site, 1, 40)
    site.listener.start()
    wait_for(lambda: holds(site, 1, 2), 20, "the job, held")
    set_limit(site, LIMIT)
    interrupt(site, 1, 2, proxy.cut)
    assert_each_ran_once(site, jobs)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("queue", QUEUES)
def test_25_cuts_lose_no_job(site: Site, proxy: CuttingProxy, queue: str, mode: str) -> None:
    prepare(site, queue, proxy, mode)
    jobs = [site.server.publish(site.accounts.user(f"u{number}").name) for number in range(4)]
    site.listener.start()
    interrupt(site, len(jobs), 25, proxy.cut)
    assert_each_ran_once(site, jobs)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("queue", QUEUES)
def test_25_kills_of_the_listener_lose_no_job(site: Site, queue: str, mode: str) -> None:
    prepare(site, queue, mode=mode)
    jobs = [site.server.publish(site.accounts.user("alice").name)]
    site.listener.start()
    for _ in range(25):
        wait_for(lambda: holds(site, 1, 1), 20, "the job, held")
        kill_and_start(site)
    assert_each_ran_once(site, jobs)


@pytest.mark.nightly
@pytest.mark.parametrize("mode", MODES)
def test_a_consumer_timeout_below_max_hold_loses_no_job(site: Site, mode: str) -> None:
    """The broker closes the channel of a consumer that holds a delivery for too long, again and again."""
    environment = {"consumer_timeout": 1000, "channel_tick_interval": 500}
    before = {name: site.broker.ctl("eval", f"application:get_env(rabbit, {name}).").strip() for name in environment}
    try:
        for name, value in environment.items():
            site.broker.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
        prepare(site, "quorum", mode=mode)
        jobs = [site.server.publish(site.accounts.user(f"u{number}").name) for number in range(4)]
        site.listener.start()
        wait_for(lambda: site.listener.log_text().count("reason='406 ") >= 25, 200, "25 time-outs")
        assert_each_ran_once(site, jobs)
    finally:
        for name, told in before.items():
            value = told.removeprefix("{ok,").removesuffix("}")
            site.broker.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
