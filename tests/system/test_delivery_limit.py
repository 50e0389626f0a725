"""RabbitMQ 4: a quorum queue has a delivery limit of 20 where nobody has set one, and no held job is lost by it."""

import json

import pytest

from tests.lab.booted_site import LISTENER, BootedSite
from tests.lab.processes import wait_for

pytestmark = pytest.mark.debian_13


def test_the_default_delivery_limit_loses_no_held_job(site: BootedSite) -> None:
    """RabbitMQ 4: others gave the jobs of a quorum queue back 18 times, then the listener is killed four times.

    It would be gone at the twenty-first. What a publisher says itself of the count changes nothing.
    """
    site.machine.run("knime-peruser", "drain")
    site.systemctl("stop", LISTENER)
    users = site.fresh_users(4)
    declare(site, "quorum")
    try:
        jobs = [
            site.server.publish(user, headers={"x-delivery-count": 100} if user == users[0] else {}) for user in users
        ]
        for _ in range(18):
            for _ in jobs:
                wait_for(lambda: site.server.channel.basic_get("knime-jobs")[0] is not None, 10, "a job in the queue")
            site.server.channel.basic_nack(0, multiple=True, requeue=True)
        site.systemctl("start", LISTENER)
        for _ in range(4):
            wait_for(lambda: held(site) == 4, 30, "all jobs, held")
            pid = site.main_pid(LISTENER)
            site.systemctl("kill", "--signal=SIGKILL", LISTENER)
            wait_for(lambda pid=pid: site.main_pid(LISTENER) not in {0, pid}, 30, "the next listener")
        wait_for(lambda: held(site) == 4, 30, "all jobs, held")
        site.machine.run("knime-peruser", "undrain")
        reports = site.server.results(4, seconds=60)
        assert sorted(report["job"] for report in reports) == sorted(jobs)
        assert site.server.further_results(0.5) == []
    finally:
        site.machine.run("knime-peruser", "undrain")
        site.systemctl("stop", LISTENER)
        declare(site, "classic")


def declare(site: BootedSite, kind: str) -> None:
    site.server.channel.queue_delete("knime-jobs")
    site.server.queue_type = kind
    site.server.declare()


def held(site: BootedSite) -> int:
    """Return how many jobs the listener says it holds, with nothing on its way; -1 while it says nothing."""
    told = site.machine.run("knime-peruser", "status", "--json", check=False)
    status = json.loads(told[told.index("{") :] if "{" in told else "{}").get("listener") or {}
    return -1 if status.get("under_way", 1) else int(status["held"]["jobs"])
