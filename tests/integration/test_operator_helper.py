"""``stop``, ``drain``, ``undrain`` and ``audit`` against the real helper and real executors, by their exit statuses."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.lab import operators_command
from tests.lab.accounts import LISTENER, OsUser
from tests.lab.helper_under_test import HelperUnderTest, helper_under_test, is_gone
from tests.lab.operators_command import Said, ended, run
from tests.lab.processes import wait_for

pytestmark = pytest.mark.library


@pytest.fixture(scope="module")
def laid_out() -> Iterator[tuple[HelperUnderTest, OsUser, OsUser]]:
    with helper_under_test() as made:
        yield made, made.accounts.user("alice"), made.accounts.user("bob")


@pytest.fixture
def helper(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> Iterator[HelperUnderTest]:
    yield laid_out[0]
    laid_out[0].reset()


@pytest.fixture
def alice(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> OsUser:
    return laid_out[1]


@pytest.fixture
def bob(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> OsUser:
    return laid_out[2]


def said(helper: HelperUnderTest, *words: str) -> Said:
    return run(helper.installation, *words)


def started(helper: HelperUnderTest, *users: OsUser) -> list[int]:
    client = helper.client()
    replies = [client.ensure(user.name) for user in users]
    assert {reply["result"] for reply in replies} == {"started"}
    return [reply["pid"] for reply in replies]


def test_stop_ends_when_the_executor_has_ended_and_says_so(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start()
    (pid,) = started(helper, alice)
    first = said(helper, "stop", alice.name)
    assert is_gone(pid)
    assert f"waiting for {alice.name}'s executor, pid {pid}, to end" in first.err
    assert (first.status, first.out.partition(", after")[0]) == (
        0,
        f"{alice.name}'s executor, pid {pid}, has ended",
    )
    assert helper.wait_for_event(user=alice.name, event="stopped")["peer"]["uid"] == 0
    second = said(helper, "stop", alice.name, "--json")
    assert (second.status, second.json) == (
        1,
        {"v": 1, "user": alice.name, "result": "absent", "pid": None, "seconds": None},
    )


def test_stop_waits_for_one_that_ignores_sigterm_and_gives_up_when_it_was_told_to(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    helper.start(limits={"stop_grace": 10.0})  # longer than two commands take
    helper.program_of(alice, "trap '' TERM; echo ready >\"$PWD/ready\"; while :; do sleep 1000; done")
    (pid,) = started(helper, alice)
    wait_for((helper.installation.workspace(alice) / "ready").exists, 30.0, "the executor ignores SIGTERM")
    gave_up = said(helper, "stop", alice.name, "--timeout", "0.2", "--json")
    assert (gave_up.status, gave_up.json["result"]) == (1, "still_running")
    assert not is_gone(pid)
    waited = said(helper, "stop", alice.name, "--json")
    assert (waited.status, waited.json["result"], waited.json["pid"]) == (0, "stopped", pid)
    assert is_gone(pid)


def test_stop_without_waiting_comes_back_at_once(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start()
    helper.program_of(alice, "trap '' TERM; while :; do sleep 1000; done")
    (pid,) = started(helper, alice)
    told = said(helper, "stop", alice.name, "--no-wait")
    assert (told.status, told.out) == (0, f"{alice.name}'s executor, pid {pid}, was told to end\n")


def test_a_helper_that_is_away_and_a_user_who_may_not_ask_have_statuses_of_their_own(helper: HelperUnderTest) -> None:
    away = said(helper, "stop", "alice")
    assert away.status == 3
    assert "systemctl status knime-root-helper" in away.err
    helper.start()
    for words in (["stop", "alice"], ["drain"], ["undrain"]):
        refused = run(helper.installation, *words, user=LISTENER)
        assert (refused.status, "run this command as root" in refused.err) == (4, True), words
    assert said(helper, "stop").status == 2
    assert said(helper, "stop", "x" * 2000).status == 2
    assert said(helper, "--config-dir", "/nowhere", "drain").status == 2


def test_drain_lasts_over_a_restart_of_the_helper_until_undrain(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start()
    assert (drained := said(helper, "drain")).status == 0
    assert drained.out == "draining: no executor is started any more; no executor runs\n"
    helper.stop()
    helper.start_again()
    assert helper.client().ensure(alice.name)["reason"] == "draining"
    assert said(helper, "undrain", "--json").json == {"v": 1, "draining": False, "executors": []}
    started(helper, alice)


def test_drain_waits_for_the_last_executor_and_not_longer(helper: HelperUnderTest, alice: OsUser, bob: OsUser) -> None:
    helper.start()
    started(helper, alice, bob)
    for_a_while = said(helper, "drain", "--wait", "--timeout", "0.3", "--json")
    assert (for_a_while.status, for_a_while.json["executors"]) == (1, [alice.name, bob.name])
    waiting = operators_command.started(helper.installation, "drain", "--wait")
    assert said(helper, "stop", alice.name).status == 0
    assert waiting.poll() is None
    assert said(helper, "stop", bob.name).status == 0
    whole = ended(waiting, 20.0)
    assert (whole.status, whole.out.splitlines()[-1]) == (0, "no executor runs")


def test_drain_waits_for_a_start_that_was_on_its_way_when_it_began(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start(stop_points=True)
    reached = helper.stop_next_worker("before_R")
    client = helper.client()
    client.send(op="ensure", user=alice.name)
    wait_for(reached.exists, 30.0, "the worker stands still")
    early = said(helper, "drain", "--wait", "--timeout", "0.3", "--json")
    assert (early.status, early.json["executors"]) == (1, [])
    (worker,) = helper.workers()
    waiting = operators_command.started(helper.installation, "drain", "--wait")
    os.kill(worker, signal.SIGCONT)
    wait_for(lambda: helper.operator("list", after="")["executors"], 30.0, "the executor runs")
    assert waiting.poll() is None
    assert said(helper, "stop", alice.name).status == 0
    assert ended(waiting, 20.0).status == 0


def test_who_interrupts_a_wait_goes_on_draining(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start()
    started(helper, alice)
    waiting = operators_command.started(helper.installation, "drain", "--wait")
    assert waiting.stderr
    assert "waiting until no executor runs" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    interrupted = ended(waiting)
    assert interrupted.status == 130
    assert helper.operator("list", after="")["draining"]


def test_the_helpers_own_log_verifies_with_the_anchors_that_it_logged(helper: HelperUnderTest, alice: OsUser) -> None:
    helper.start(audit={"rotate_size": 4096})
    client = helper.client()
    for _ in range(20):
        client.ensure("root")
    started(helper, alice)
    helper.stop()
    log = helper.installation.audit_log
    assert len(list(log.parent.glob("audit.jsonl.*"))) >= 1
    sound = said(helper, "audit", "verify", "--anchors", str(helper.log), "--json")
    assert (sound.status, sound.json["faults"]) == (0, [])
    assert sound.json["records"] == len(helper.audit())
    assert sound.json["anchors"]["checked"] >= 2
    text = log.read_bytes()
    *others, last = text.splitlines(keepends=True)
    log.write_bytes(b"".join(others) + last.replace(b'"event":"', b'"event":"X'))
    broken = said(helper, "audit", "verify")
    assert (broken.status, broken.out.splitlines()[0].partition(": ")[0]) == (1, f"record {sound.json['last']}")
    log.write_bytes(text)
    oldest = min(log.parent.glob("audit.jsonl.*"), key=lambda path: int(path.suffix[1:]))
    oldest.unlink()
    removed = said(helper, "audit", "verify", "--json")
    assert [(fault["record"], fault["kind"]) for fault in removed.json["faults"]] == [(1, "missing")]


def test_audit_show_gives_who_ran_what_as_whom_and_refuses_who_may_not_read_it(
    helper: HelperUnderTest, alice: OsUser, bob: OsUser
) -> None:
    helper.start()
    (pid, _) = started(helper, alice, bob)
    helper.client().ensure("root")
    log = str(helper.installation.audit_log)
    shown = said(helper, "audit", "show", "--event", "started", "--user", alice.name, "--json")
    assert shown.status == 0
    record = shown.json
    assert (record["user"], record["os_user"], record["uid"], record["pid"]) == (alice.name, alice.name, alice.uid, pid)
    table = said(helper, "audit", "show", "--decision", "refused", "--since", "1h")
    assert "root" in table.out
    assert "denied_user" in table.out
    assert said(helper, "audit", "show", "--user", "nobody-at-all").status == 1
    for words in (["show"], ["verify"], ["show", "--log", log], ["verify", "--log", log]):
        refused = run(helper.installation, "audit", *words, user=LISTENER)
        assert (refused.status, "root and group adm" in refused.err) == (4, True), words
    assert said(helper, "audit", "verify", "--log", "/nonexistent/audit.jsonl").status == 1
    assert said(helper, "audit", "verify", "--anchors", str(helper.installation.helper_toml)).status == 2
    assert said(helper, "audit", "show", "--since", "soon").status == 2


def test_status_without_a_listener_shows_the_helpers_executors_and_says_what_is_missing(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    helper.start()
    (pid,) = started(helper, alice)
    socket = str(helper.installation.status_socket)
    shown = said(helper, "status", "--status-socket", socket, "--json")
    assert shown.status == 3
    (entry,) = shown.json["users"]
    assert (entry["user"], entry["os_user"], entry["uid"], entry["pid"]) == (alice.name, alice.name, alice.uid, pid)
    assert "knime-broker-listener" in shown.json["missing"]["listener"]
    one = said(helper, "status", alice.name, "--status-socket", socket)
    assert one.status == 0
    assert [word for word in ("request", "started", "result") if word in one.out] == ["request", "started", "result"]
    assert said(helper, "status", "nobody-at-all", "--status-socket", socket).status == 1
    assert said(helper, "status", "--watch", "--status-socket", socket).status == 2
