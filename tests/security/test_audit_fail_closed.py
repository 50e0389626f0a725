"""No record, no start: the helper on a full disk, and with its log taken away under it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab.accounts import OsUser
from tests.lab.file_trees import mount
from tests.lab.helper_under_test import HelperUnderTest, helper_under_test, state_of
from tests.lab.processes import processes_of, wait_for


@pytest.fixture(scope="module")
def laid_out() -> Iterator[tuple[HelperUnderTest, OsUser, OsUser]]:
    with helper_under_test() as made:
        yield made, made.accounts.user("alice"), made.accounts.user("bob")


@pytest.fixture
def disk(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> Iterator[Path]:
    """Give a small file system of its own, on which the audit log is."""
    logs = laid_out[0].installation.logs / "small"
    logs.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", logs)
    laid_out[0].installation.audit_log = logs / "audit.jsonl"
    yield logs
    laid_out[0].kill()
    subprocess.run(["/usr/bin/umount", str(logs)], check=True)


@pytest.fixture
def helper(laid_out: tuple[HelperUnderTest, OsUser, OsUser], disk: Path) -> Iterator[HelperUnderTest]:  # noqa: ARG001  mounted first
    yield laid_out[0]
    laid_out[0].kill()


@pytest.fixture(autouse=True)
def new_host(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> Iterator[None]:
    yield
    laid_out[0].reset()


@pytest.fixture
def alice(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> OsUser:
    return laid_out[1]


@pytest.fixture
def bob(laid_out: tuple[HelperUnderTest, OsUser, OsUser]) -> OsUser:
    return laid_out[2]


def fill(helper: HelperUnderTest, disk: Path) -> Path:
    """Leave no room on the disk; give the file that takes it. The log's last page is filled by what anybody may ask."""
    ballast, client, size = disk / "ballast", helper.client(), -1
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    while size != (size := helper.installation.audit_log.stat().st_size):
        client.ask("list", after="")
    return ballast


def none_of(user: OsUser) -> bool:
    return not any(process.alive() for process in processes_of([user.uid]))


def test_on_a_full_disk_nothing_is_started_and_the_reason_is_said(
    helper: HelperUnderTest, disk: Path, alice: OsUser
) -> None:
    helper.start()
    ballast = fill(helper, disk)
    client = helper.client()
    for _ in range(3):
        reply = client.ensure(alice.name)
        assert (reply["result"], reply["reason"]) == ("failed", "audit_unavailable")
        assert reply["retry_after"] > 0
    assert none_of(alice)
    assert not helper.installation.workspace(alice).exists()
    assert str(helper.installation.audit_log) in helper.log.read_text()
    ballast.unlink()
    assert client.ensure(alice.name)["result"] == "started"
    assert helper.events(alice.name) == ["request", "started", "result"]


def test_what_runs_goes_on_and_its_end_is_written_when_there_is_room(
    helper: HelperUnderTest, disk: Path, alice: OsUser, bob: OsUser
) -> None:
    helper.start()
    client = helper.client()
    pids = {user.name: client.ensure(user.name)["pid"] for user in (alice, bob)}
    ballast = fill(helper, disk)
    os.kill(pids[alice.name], signal.SIGKILL)
    assert client.wait_for_notice(user=alice.name)["pid"] == pids[alice.name]
    assert client.ensure(bob.name)["result"] == "running"
    assert state_of(pids[bob.name]) == "S"
    assert "exited" not in helper.events(alice.name)
    ballast.unlink()
    assert helper.wait_for_event(10.0, user=alice.name, event="exited")["pid"] == pids[alice.name]
    helper.stop()
    assert helper.audit()[-1]["event"] == "helper_stopped"


def test_a_disk_that_fills_up_during_a_start_ends_it_before_anything_is_executed(
    helper: HelperUnderTest, disk: Path, alice: OsUser
) -> None:
    helper.start(stop_points=True)
    reached, client = helper.stop_next_worker("before_R"), helper.client()
    asked = client.send(op="ensure", user=alice.name)
    wait_for(reached.exists, 5.0, "the worker before R")
    wait_for(lambda: any(state_of(pid) == "T" for pid in helper.workers()), 5.0, "its stop")
    ballast = fill(helper, disk)
    helper.program_of(alice, "touch ran")
    os.kill(helper.workers()[0], signal.SIGCONT)
    assert client.wait_for(asked)["reason"] == "audit_unavailable"
    wait_for(lambda: none_of(alice), 5.0, "the worker's end")
    assert not (helper.installation.workspace(alice) / "ran").exists()
    ballast.unlink()
    helper.kill()
    helper.start_again()
    assert helper.client().executors() == []
    assert "exited" not in helper.events(alice.name), "what was never started cannot end"


def test_a_helper_that_starts_on_a_full_disk_adopts_and_starts_nothing(
    helper: HelperUnderTest, disk: Path, alice: OsUser, bob: OsUser
) -> None:
    helper.start()
    pid = helper.client().ensure(alice.name)["pid"]
    ballast = fill(helper, disk)
    helper.kill()
    helper.start_again()
    client = helper.client()
    assert client.ensure(alice.name)["pid"] == pid
    assert client.ensure(bob.name)["reason"] == "audit_unavailable"
    ballast.unlink()
    assert client.ensure(bob.name)["result"] == "started"
    assert [record["event"] for record in helper.audit()].count("helper_started") == 2


@pytest.mark.parametrize("how", ["removed", "truncated", "replaced"])
def test_a_log_that_is_taken_away_stops_the_starts(helper: HelperUnderTest, alice: OsUser, how: str) -> None:
    helper.start()
    log = helper.installation.audit_log
    if how == "truncated":
        os.truncate(log, 10)
    else:
        log.rename(log.with_name("stolen"))
    if how == "replaced":
        log.touch()
    assert helper.client().ensure(alice.name)["reason"] == "audit_unavailable"
    assert none_of(alice)
