"""One user's jobs, more than the listener holds, whose executor never gets ready: others' jobs run all the same."""

import json
import time

import pika
import pytest

from tests.lab.chaos import listener_status
from tests.lab.site import Site

JOBS = 10_000
MOST = 4 * 2**20
"""Of this a user's share is a quarter; ten thousand jobs of a kilobyte are ten times as much."""


@pytest.fixture
def hiding(site: Site) -> Site:
    """Give a site where a user's executor never gets ready, and ten thousand of the user's jobs wait."""
    user = site.accounts.user("busy")
    site.installation.configure_knime(users={user.name: {"start_time": 1000.0}})
    site.start(listener={"broker": {"max_held_bytes": MOST}, "hand_over": {"start_timeout": 600.0}})
    for number in range(JOBS):
        body = json.dumps({"user": user.name, "job": f"busy-{number}", "padding": "x" * 1000}).encode()
        site.server.publish_raw(body, pika.BasicProperties(headers={"canHandle": False}))
    return site


def test_new_user_runs_behind_more_jobs_of_one_user_than_are_held(hiding: Site) -> None:
    """A job that goes back is delivered again at once: that happens 20 times a second and no more."""
    for name in ("new", "newer"):
        job = hiding.server.publish(hiding.accounts.user(name).name)
        (report,) = hiding.server.results(1, seconds=20)
        assert report["job"] == job
    status = listener_status(hiding)
    assert status["consuming"]
    assert status["held"]["bytes"] < MOST / 2
    assert status["held"]["jobs"] == pytest.approx(JOBS, abs=5)
    before, began = status["totals"]["received"], time.monotonic()
    time.sleep(3.0)  # what is measured is an interval
    went_back = listener_status(hiding)["totals"]["received"] - before
    assert 0 < went_back <= 21 * (time.monotonic() - began) + 2
