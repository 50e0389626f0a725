"""The helper's words are ordered by what caused what: an executor that ended with the helper is not awaited."""

import os
import signal
import time

from tests.lab.chaos import listener_status
from tests.lab.processes import wait_for
from tests.lab.site import Site


def test_a_young_executor_that_ended_with_its_helper_is_not_awaited(site: Site) -> None:
    """Its job runs at once when the helper is back, not after ``start_timeout``: the list that lacks it is believed.

    Nobody tells of its end, and its age when the list arrives is that of the helper's restart: well below a second.
    """
    site.installation.configure_knime(start_time=1.0)
    site.start()
    alice = site.accounts.user("alice")
    job = site.server.publish(alice.name)
    wait_for(lambda: executor_of(site, alice.name), 20, "an executor that the listener has heard of")
    executor = executor_of(site, alice.name)
    site.helper.kill()
    os.kill(executor, signal.SIGKILL)
    site.helper.start()
    back = time.monotonic()
    (report,) = site.server.results(1, seconds=20)
    print(f"\nthe job ran {time.monotonic() - back:.1f} s after the helper was back")
    assert (report["job"], report["uid"]) == (job, alice.uid)
    assert report["pid"] != executor


def executor_of(site: Site, user: str) -> int:
    """Return the executor's process as the listener knows it, 0 where it knows of none."""
    return next((told["pid"] or 0 for told in listener_status(site)["users"] if told["user"] == user), 0)
