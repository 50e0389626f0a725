"""A flood of jobs of names that nobody has, and in it real users: some were started before, some are new.

The limits of the helper are its defaults: look-ups of invented names share them with everybody.
"""

import json
import os
import pwd
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import pika
import pytest

from tests.lab.accounts import LISTENER, OsUser
from tests.lab.chaos import install_light_executor, listener_status
from tests.lab.processes import processes_of, wait_for
from tests.lab.site import Site

FLOOD = 6000
SOON = 2.0
"""Seconds within which a new user's executor is started, whatever the flood."""


def publish(site: Site, *users: str) -> None:
    for number, user in enumerate(users):
        body = json.dumps({"user": user, "job": f"{user}-{number}"}).encode()
        site.server.publish_raw(body, pika.BasicProperties(headers={"canHandle": False}))


def invented(count: int, prefix: str = "nobody") -> list[str]:
    return [f"{prefix}{number:05d}x" for number in range(count)]


def flood(site: Site, count: int = FLOOD) -> None:
    """Publish the jobs and wait until the listener has met them all."""
    before = listener_status(site)["totals"]["received"]
    publish(site, *invented(count))
    wait_for(lambda: listener_status(site)["totals"]["received"] >= before + count, 60, "the flood")


def seconds_until_started(site: Site, user: OsUser, most: float = 70.0) -> float:
    """Publish a job of the user; return how long it took until a process is the user's."""
    publish(site, user.name)
    began = time.monotonic()
    wait_for(lambda: list(processes_of([user.uid])), most, f"an executor of {user.name}")
    return time.monotonic() - began


@contextmanager
def trickle(site: Site, per_second: float) -> Iterator[None]:
    """Publish jobs of ever new invented names meanwhile, on a connection of its own."""
    ended = threading.Event()
    url = site.broker.server.at(site.broker.port, site.vhost)

    def run() -> None:
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            channel = connection.channel()
            for number in range(1_000_000):
                if ended.wait(1 / per_second):
                    return
                body = json.dumps({"user": f"stream{number}x", "job": "j"}).encode()
                properties = pika.BasicProperties(headers={"canHandle": False})
                channel.basic_publish(site.server.exchange, site.server.routing_key, body, properties)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def flooded(site: Site) -> Site:
    install_light_executor(site.installation)
    site.start()
    flood(site)
    return site


def assert_soon(took: list[float]) -> None:
    """See that it was within the contract's time: mostly, since others may use the machine, and never much later."""
    assert median(took) < SOON, took
    assert max(took) < 5 * SOON, took


def test_new_user_starts_soon_behind_6000_invented_names(flooded: Site) -> None:
    """It took more than a minute when all were asked for in the order in which they came."""
    users = [flooded.accounts.user(f"new{number}") for number in range(3)]
    assert_soon([seconds_until_started(flooded, user) for user in users])


def test_new_users_start_soon_while_invented_names_go_on_coming(flooded: Site) -> None:
    """One after the other within the time of the contract, mostly; some at once, on a busy machine, a little later."""
    users = [flooded.accounts.user(f"new{number}") for number in range(10)]
    with trickle(flooded, 5):
        took = [seconds_until_started(flooded, user) for user in users[:5]]
        publish(flooded, *(user.name for user in users[5:]))
        began = time.monotonic()
        for user in users[5:]:
            wait_for(lambda uid=user.uid: list(processes_of([uid])), 60, "all executors")
        at_once = time.monotonic() - began
    assert_soon(took)
    assert at_once < 5 * SOON


@pytest.mark.extended
def test_user_who_was_started_before_goes_first_after_a_restart(flooded: Site) -> None:
    """The executors have ended, the listener was started again, and twice as many names wait as before."""
    users = [flooded.accounts.user(f"known{number}") for number in range(3)]
    for user in users:
        seconds_until_started(flooded, user)
    time.sleep(10.1)  # the contract's limit of a quick death, whose user waits
    flooded.listener.stop()
    for process in processes_of([user.uid for user in users]):
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not list(processes_of([user.uid for user in users])), 20, "the executors' ends")
    state = flooded.installation.listener_state / "started-before"
    names = state.read_text(encoding="ascii").split("\n")[1:-1]
    assert sorted(names) == [user.name for user in users], "and no invented name"
    assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (pwd.getpwnam(LISTENER).pw_uid, 0o600)
    flooded.listener.start()
    publish(flooded, *invented(FLOOD, "more"))
    wait_for(lambda: listener_status(flooded)["totals"]["received"] >= 2 * FLOOD, 60, "the flood, twice as large")
    assert_soon([seconds_until_started(flooded, user) for user in users])


@pytest.mark.extended
def test_account_made_after_its_name_was_asked_for_runs(flooded: Site) -> None:
    """Repeats have a quarter of the look-ups, so within ``unknown_grace`` the new account is found."""
    name = f"{flooded.accounts.prefix}late"
    publish(flooded, name)
    wait_for(lambda: f"user={name} reason=unknown_user" in flooded.helper.log_text(), 20, "the name asked for")
    late = flooded.accounts.user("late")
    wait_for(lambda: list(processes_of([late.uid])), 60, "an executor of the late account")
