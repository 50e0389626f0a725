"""The listener where others fail it: a log that nobody reads, a queue that takes nothing, 10,000 jobs that go back."""

import json
import os
from collections import Counter

import pika
import pytest

from tests.lab.chaos import Ledger, install_light_executor, listener_status
from tests.lab.processes import wait_for
from tests.lab.site import Site


def publish(site: Site, user: str, count: int, **properties: object) -> None:
    for number in range(count):
        body = json.dumps({"user": user, "job": f"{user}-{number}"}).encode()
        site.server.publish_raw(body, pika.BasicProperties(headers={"canHandle": False}, **properties))


def ran(site: Site) -> Counter[str]:
    return Ledger(site.installation.workspaces).update()


def test_a_reader_of_the_log_that_stopped_stops_nothing(site: Site) -> None:
    """Its pipe is full already when the listener writes its first line."""
    install_light_executor(site.installation)
    site.installation.write_helper_toml()
    site.installation.write_listener_toml()
    site.helper.start()
    site.listener.log.unlink(missing_ok=True)
    os.mkfifo(site.listener.log)
    reader = os.open(site.listener.log, os.O_RDWR | os.O_NONBLOCK)
    try:
        with pytest.raises(BlockingIOError):  # noqa: PT012 - that is when it is full
            while True:
                os.write(reader, b".")
        site.listener.start()
        users = [site.accounts.user(name).name for name in ("alice", "bob")]
        for user in users:
            publish(site, user, 40)
        for number in range(1500):
            site.server.publish_raw(b"junk %d" % number, pika.BasicProperties())
        wait_for(lambda: ran(site).total() == 80, 60, "all jobs")
        wait_for(lambda: site.server.depth("knime-jobs.parked") == 1500, 60, "all that is no job parked")
        wait_for(lambda: listener_status(site)["held"]["jobs"] == 0, 20, "nothing held")
        site.listener.stop()
    finally:
        os.close(reader)
        site.listener.log.unlink()
    assert site.server.depth() == 0
    assert set(ran(site).values()) == {1}


@pytest.mark.parametrize("mode", ["republish", pytest.param("requeue", marks=pytest.mark.nightly)])
def test_a_jobs_queue_that_is_full_delays_hand_overs_and_loses_none(site: Site, mode: str) -> None:
    """Seven jobs are held while an executor starts, five more fill the queue: KNIME Server's next publish is refused.

    Those with an expiry are published in either mode, and refused, until the executor has made room.
    """
    site.server.channel.queue_delete(site.server.queue)
    site.server.channel.queue_declare(
        site.server.queue, durable=True, arguments={"x-max-length": 5, "x-overflow": "reject-publish"}
    )
    site.server.channel.queue_bind(site.server.queue, site.server.exchange, site.server.routing_key)
    install_light_executor(site.installation, start_time=3.0, job_time=0.4)
    site.start(listener={"hand_over": {"mode": mode}, "broker": {"prefetch": 7}})
    user = site.accounts.user("alice").name
    wait_for(lambda: site.server.consumers() == 1, 30, "the listener's consumer")  # it proves first that it can publish
    publish(site, user, 12, expiration="600000")
    wait_for(lambda: site.server.depth() == 5, 20, "a full queue")
    assert listener_status(site)["held"]["jobs"] == 7
    wait_for(lambda: ran(site).total() == 12, 60, "all jobs")
    wait_for(lambda: listener_status(site)["held"]["jobs"] == 0, 20, "nothing held")
    assert ran(site) == Counter({f"{user}-{number}": 1 for number in range(12)})
    assert site.server.depth() == 0
    assert "outcome=nacked" in site.listener.log_text()


@pytest.mark.nightly
def test_ten_thousand_jobs_that_go_back_at_once_cost_no_heartbeat(site: Site) -> None:
    """With one a second the broker ends a connection that says nothing for three."""
    broker = site.installation.root / "lib/broker_listener/broker.py"
    text = broker.read_text(encoding="utf-8")
    assert "HEARTBEAT: Final = 30" in text
    broker.write_text(text.replace("HEARTBEAT: Final = 30", "HEARTBEAT: Final = 1"), encoding="utf-8")
    site.installation.configure_knime(start_time=1000.0)
    site.start(listener={"hand_over": {"start_timeout": 8.0}, "broker": {"max_hold": 8.0}})
    publish(site, site.accounts.user("late").name, 10_000)
    wait_for(lambda: "event=held_too_long" in site.listener.log_text(), 60, "the end of max_hold")
    wait_for(lambda: listener_status(site)["totals"]["received"] >= 20_000, 60, "all of them once more")
    assert site.listener.log_text().count("event=broker_up") == 2
    site.listener.stop()
    wait_for(lambda: site.server.depth() == 10_000, 20, "all of them in the queue")
