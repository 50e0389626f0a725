"""Many executors on one queue, and some that never take anything: nothing spins, nobody starves.

The executors of others are a crowd that puts every job back; our users' are ``simulated_knime/light.py``. What is
bounded is processor time and how often a job went round, never how long something took.
"""

import json
import time
from collections import Counter

import pika
import pytest

from tests.lab.chaos import Ledger, install_light_executor, listener_status
from tests.lab.crowd import Crowd, PutBack
from tests.lab.processes import cpu_seconds, wait_for
from tests.lab.site import Site


def publish(site: Site, user: str, count: int, name: str = "j") -> None:
    for number in range(count):
        body = json.dumps({"user": user, "job": f"{name}{number}"}).encode()
        site.server.publish_raw(body, pika.BasicProperties(headers={"canHandle": False}, delivery_mode=2))


def share_of_a_core(pid: int, seconds: float) -> float:
    used, began = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)  # what is measured is an interval
    return (cpu_seconds(pid) - used) / (time.monotonic() - began)


def ran(site: Site, prefix: str, count: int) -> Counter[str]:
    """Wait until so many jobs of that name ran."""
    ledger = Ledger(site.installation.workspaces)

    def found() -> Counter[str]:
        return Counter({job: times for job, times in ledger.update().items() if job.startswith(prefix)})

    wait_for(lambda: len(found()) >= count, 60, f"{count} jobs {prefix}")
    return found()


@pytest.mark.parametrize(
    ("size", "put_back"),
    [(1, "false"), (10, "true"), (10, "nack"), (100, "false")],
)
def test_jobs_that_others_put_back_before_and_after_their_executor_is_up_run_once_each(
    site: Site, size: int, put_back: PutBack
) -> None:
    """While the executor starts the listener holds the jobs, so that they do not go round among the others."""
    up = site.installation.knime_home / "up"
    install_light_executor(site.installation, connects_when=str(up))
    site.start()
    crowd = Crowd(site.broker.executors.at(site.broker.port, site.vhost), size, put_back)
    try:
        crowd.start()
        user = site.accounts.user("alice").name
        publish(site, user, 50)
        wait_for(lambda: listener_status(site)["held"]["jobs"] == 50, 30, "all jobs held")
        before = crowd.returned
        assert share_of_a_core(site.listener.pid, 0.5) < 0.2
        assert crowd.returned == before, "jobs go round while their executor starts"
        up.touch()
        assert ran(site, "j", 50) == Counter({f"j{number}": 1 for number in range(50)})
        wait_for(lambda: site.server.depth() == 0, 30, "an empty queue")
    finally:
        crowd.end()


@pytest.mark.parametrize("mode", ["republish", pytest.param("requeue", marks=pytest.mark.nightly)])
def test_a_user_whose_executor_takes_nothing_costs_little_and_delays_nobody(site: Site, mode: str) -> None:
    """It is connected and a consumer, so for the listener it is ready; 1,000 jobs of it come back again and again."""
    never = site.accounts.user("never").name
    install_light_executor(site.installation, users={never: {"takes": False}})
    site.start(listener={"hand_over": {"mode": mode}})
    publish(site, never, 1000, "never")
    wait_for((site.installation.workspaces / never / "ran").exists, 20, "the executor")
    time.sleep(2.0)  # until the pause between two of its jobs has grown
    assert share_of_a_core(site.listener.pid, 2.0) < 0.2
    others = [site.accounts.user(f"u{number}").name for number in range(3)]
    for user in others:
        publish(site, user, 10, f"{user}-")
    for user in others:
        assert set(ran(site, f"{user}-", 10).values()) == {1}
    assert ran(site, "never", 0) == Counter()
    assert site.listener.log_text().count("event=broker_up") == 2
