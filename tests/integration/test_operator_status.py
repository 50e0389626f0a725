"""``status`` and ``status USER`` against both daemons, the broker and real executors, by exit status and JSON."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.accounts import OsUser
from tests.lab.broker_node import BrokerNode
from tests.lab.operators_command import Said, run
from tests.lab.processes import wait_for
from tests.lab.site import Site


@pytest.fixture(scope="module")
def started(broker: BrokerNode) -> Iterator[tuple[Site, OsUser]]:
    """One site for all of these: each puts back what it takes away."""
    site = Site(broker)
    try:
        site.create()
        site.start()
        yield site, site.accounts.user("alice")
    finally:
        site.remove()


@pytest.fixture
def site(started: tuple[Site, OsUser]) -> Site:
    return started[0]


@pytest.fixture
def alice(started: tuple[Site, OsUser]) -> OsUser:
    """Have alice's executor run, and a job of hers done."""
    started[0].server.publish(started[1].name)
    started[0].server.results(1)
    return started[1]


def status(site: Site, *words: str, user: str | None = None) -> Said:
    socket = ["--status-socket", str(site.installation.status_socket)]
    return run(site.installation, "status", *words, *socket, user=user)


def row_of(told: Said, user: str) -> dict[str, Any]:
    (row,) = (row for row in told.json["users"] if row["user"] == user)
    return dict(row)


def test_who_has_an_executor_is_shown_with_what_the_kernel_and_the_daemons_know_of_it(
    site: Site, alice: OsUser
) -> None:
    wait_for(lambda: row_of(status(site, "--json"), alice.name)["state"] == "ready", 20, "an executor that is ready")
    told = status(site, "--json")
    assert told.status == 0, told.err
    row = row_of(told, alice.name)
    assert (row["os_user"], row["uid"], row["state"]) == (alice.name, alice.uid, "ready")
    assert row["pid"] in {one["pid"] for one in starts_of(site)}
    assert row["handed_over"] >= 1
    assert told.json["missing"] == {}
    words = status(site)
    assert (words.status, alice.name in words.out, "ready" in words.out) == (0, True, True)
    assert "\x1b" not in words.out


def test_jobs_that_come_back_stay_counted(site: Site, alice: OsUser) -> None:
    """An executor that is stopped takes one job at most: two more are handed over, come back, and count as two."""
    wait_for(lambda: row_of(status(site, "--json"), alice.name)["state"] == "ready", 20, "an executor that is ready")
    seen = [row_of(status(site, "--json"), alice.name)]
    os.kill(seen[0]["pid"], signal.SIGSTOP)
    try:
        site.server.publish(alice.name)
        wait_for(lambda: not _look(site, alice, seen)["held"] and not site.server.depth("knime-jobs"), 20, "a full one")
        taken, before = len(seen), seen[-1]
        for _ in range(2):
            site.server.publish(alice.name)
        wait_for(lambda: _look(site, alice, seen)["returned"] >= before["returned"] + 8, 20, "jobs that come back")
    finally:
        os.kill(seen[0]["pid"], signal.SIGCONT)
    round_about = [row for row in seen[taken:] if row["returned"] >= before["returned"] + 4]
    assert {row["jobs"] - before["jobs"] for row in round_about} == {2}
    site.server.results(3)


def _look(site: Site, user: OsUser, seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a user's row as it is now, and keep it."""
    seen.append(row_of(status(site, "--json"), user.name))
    return seen[-1]


def starts_of(site: Site) -> list[dict[str, Any]]:
    """Give what the audit log has of starts."""
    shown = run(site.installation, "audit", "show", "--event", "started", "--json").out
    return [json.loads(line) for line in shown.splitlines()]


def test_a_users_history_tells_why_there_is_no_executor(site: Site, alice: OsUser) -> None:
    known = status(site, alice.name)
    assert known.status == 0
    assert [word for word in ("request", "started", "result") if word in known.out] == ["request", "started", "result"]
    site.server.publish("root")
    site.server.parked(1)
    refused = status(site, "root", "--json")
    assert refused.status == 0
    assert refused.json["history"][-1]["reason"] == "denied_user"
    assert refused.json["now"]["reason"] == "denied_user"
    assert status(site, "nobody-at-all").status == 1


def test_a_strangers_account_is_told_nothing(site: Site, alice: OsUser) -> None:
    told = status(site, user=alice.name)
    assert told.status == 4, told
    assert alice.name not in told.out


def test_a_daemon_that_is_away_is_named_and_what_the_other_knows_is_shown(site: Site, alice: OsUser) -> None:
    site.listener.stop()
    without_listener = status(site, "--json")
    assert without_listener.status == 3
    assert without_listener.json["missing"].keys() == {"listener"}
    assert row_of(without_listener, alice.name)["uid"] == alice.uid
    site.listener.start()
    site.helper.stop()
    without_helper = status(site, "--json")
    assert without_helper.status == 3
    assert without_helper.json["missing"].keys() == {"helper"}
    site.helper.start()
    wait_for(lambda: status(site).status == 0, 30.0, "both daemons")
    assert row_of(status(site, "--json"), alice.name)["state"] in {"ready", "probing"}, "adopted, not started again"


def test_a_broker_that_is_away_is_a_finding(site: Site, broker: BrokerNode) -> None:
    site.server.close()
    broker.stop()
    try:
        wait_for(lambda: status(site).status == 1, 30.0, "the listener has noticed")
    finally:
        broker.start()
        site.server.connect()
    wait_for(lambda: status(site).status == 0, 60.0, "the broker is back")
