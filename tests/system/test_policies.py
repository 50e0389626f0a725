"""A policy of RabbitMQ 4 that empties the parked queue: check names it, and the listener misses the messages."""

import json
import time

import pytest

from tests.lab.booted_site import LISTENER, BootedSite
from tests.lab.processes import wait_for

PARKED = "knime-jobs.parked"
PASSWORD = "/etc/knime-peruser/monitor-password"
MANAGEMENT = ("--management", "http://monitor@127.0.0.1:15672", "--management-password-file", PASSWORD)


@pytest.mark.debian_13
def test_messages_that_a_policy_removed_are_missed(site: BootedSite) -> None:
    """With message-ttl on every queue: a fault of check with the policy's name, a warning at the next connect."""
    _make_monitor(site)
    began = time.time()
    site.systemctl("restart", LISTENER)
    site.wait_until_served()
    wait_for(lambda: "parked=0" in _said(site, began), 30, "the listener's count")
    site.machine.run("rabbitmqctl", "set_policy", "short", ".*", '{"message-ttl": 1}', "--apply-to", "queues")
    try:
        named = f"messages leave {PARKED}: message-ttl=1 (policy short)"
        wait_for(lambda: named in _finding(site)["seen"], 60, "the fault")  # the interface shows what it collected
        assert _finding(site)["level"] == "fault"
        site.server.publish_raw(b"no job")
        wait_for(lambda: _parked_since_restart(site) == 1, 30, "the parking")
        wait_for(lambda: site.server.depth(PARKED) == 0, 30, "the policy's effect")
        site.machine.run("rabbitmqctl", "close_all_user_connections", site.listener_account, "a test")
        wait_for(lambda: "event=parked_messages_gone" in _said(site, began), 60, "the warning")
        assert "parked=0 gone=1" in _said(site, began)
    finally:
        site.machine.run("rabbitmqctl", "clear_policy", "short")


def _make_monitor(site: BootedSite) -> None:
    run = site.machine.run
    run("rabbitmq-plugins", "enable", "rabbitmq_management")
    run("rabbitmqctl", "add_user", "monitor", "s3cret-of-the-monitor")
    run("rabbitmqctl", "set_user_tags", "monitor", "policymaker", "monitoring")
    run("rabbitmqctl", "set_permissions", "monitor", "", "", ".*")
    site.machine.write(PASSWORD, "s3cret-of-the-monitor\n")


def _finding(site: BootedSite) -> dict[str, str]:
    found = json.loads(site.machine.run("knime-peruser", "check", "--json", *MANAGEMENT, check=False))["findings"]
    return next(one for one in found if one["subject"] in {"broker.parked_policy", "broker.management"})


def _parked_since_restart(site: BootedSite) -> int:
    told = json.loads(site.machine.run("knime-peruser", "status", "--json", check=False))
    return sum(told["listener"]["totals"]["parked"].values())


def _said(site: BootedSite, since: float) -> str:
    entries = site.machine.journal("-u", LISTENER, f"--since=@{since:.0f}")
    return " ".join(entry["MESSAGE"] for entry in entries)
