"""When an executor counts as ready, end to end: after a delay, by its connection to named addresses, or by neither."""

import json
import time

import pika
import pytest

from tests.lab.chaos import Ledger, install_light_executor, listener_status
from tests.lab.processes import wait_for
from tests.lab.site import Site


def first_job(site: Site) -> float:
    """Publish a user's first job, wait until it ran, give the seconds from the publish."""
    user = site.accounts.user("alice").name
    began = time.time()
    body = json.dumps({"user": user, "job": "first"}).encode()
    site.server.publish_raw(body, pika.BasicProperties(headers={"canHandle": False}))
    ledger = Ledger(site.installation.workspaces)
    wait_for(lambda: ledger.update()["first"] == 1, 30, "the first job")
    wait_for(lambda: listener_status(site)["held"]["jobs"] == 0, 30, "nothing held")
    return ledger.runs[0].at - began


def test_in_delay_mode_the_first_job_is_handed_over_so_many_seconds_after_the_start(site: Site) -> None:
    install_light_executor(site.installation)
    site.start(listener={"hand_over": {"ready": "delay", "ready_delay": 1.5}})
    assert first_job(site) >= 1.5
    assert "event=start_overdue" not in site.listener.log_text()


@pytest.mark.parametrize(("address", "by_its_connection"), [("127.0.0.1", True), ("192.0.2.1", False)])
def test_with_ready_addresses_a_connection_to_another_does_not_count_and_start_timeout_hands_over_and_says_so(
    site: Site, address: str, *, by_its_connection: bool
) -> None:
    install_light_executor(site.installation)
    site.start(listener={"hand_over": {"ready_addresses": [address], "start_timeout": 2.0}})
    took = first_job(site)
    assert ("event=start_overdue" in site.listener.log_text()) is not by_its_connection
    if not by_its_connection:
        assert took >= 2.0
