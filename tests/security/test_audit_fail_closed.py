"""No record, no start: the helper on a full disk, and with its log taken away under it."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.lab.accounts import OsUser
from tests.lab.file_trees import mount
from tests.lab.helper_under_test import HelperUnderTest, state_of
from tests.lab.processes import processes_of, wait_for

pytestmark = pytest.mark.needs("mount")


@pytest.fixture
def disk(helper: HelperUnderTest) -> Iterator[Path]:
    """Give a small file system of its own, on which the audit log is."""
    logs = helper.installation.logs / "small"
    logs.mkdir()
    mount("-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", logs)
    audit_log, helper.installation.audit_log = helper.installation.audit_log, logs / "audit.jsonl"
    yield logs
    helper.kill()
    helper.installation.audit_log = audit_log
    subprocess.run(["/usr/bin/umount", str(logs)], check=True)


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
    assert helper.wait_for_event(30.0, user=alice.name, event="exited")["pid"] == pids[alice.name]
    helper.stop()
    assert helper.audit()[-1]["event"] == "helper_stopped"


def test_an_end_that_could_not_be_written_is_written_by_the_next_helper(
    helper: HelperUnderTest, disk: Path, alice: OsUser
) -> None:
    """Restarting the helper is what an administrator does when the log is out of order."""
    helper.start()
    pid = helper.client().ensure(alice.name)["pid"]
    ballast = fill(helper, disk)
    client = helper.client()
    client.ask("list", after="")
    os.kill(pid, signal.SIGKILL)
    client.wait_for_notice(user=alice.name)
    wait_for(lambda: none_of(alice), 30.0, "nothing of the executor")
    assert client.ensure(alice.name)["reason"] == "audit_unavailable"
    helper.kill()
    ballast.unlink()
    helper.start_again()
    helper.wait_for_event(event="exited", user=alice.name, pid=pid)
    wait_for(lambda: helper.client().ensure(alice.name)["result"] == "started", 30.0, "a start")
    assert helper.events(alice.name).count("exited") == 1


def test_a_disk_that_fills_up_during_a_start_ends_it_before_anything_is_executed(
    helper: HelperUnderTest, disk: Path, alice: OsUser
) -> None:
    helper.start(stop_points=True)
    reached, client = helper.stop_next_worker("before_R"), helper.client()
    asked = client.send(op="ensure", user=alice.name)
    wait_for(reached.exists, 30.0, "the worker before R")
    wait_for(lambda: any(state_of(pid) == "T" for pid in helper.workers()), 30.0, "its stop")
    ballast = fill(helper, disk)
    helper.program_of(alice, "touch ran")
    os.kill(helper.workers()[0], signal.SIGCONT)
    assert client.wait_for(asked)["reason"] == "audit_unavailable"
    wait_for(lambda: none_of(alice), 30.0, "the worker's end")
    assert not (helper.installation.workspace(alice) / "ran").exists()
    ballast.unlink()
    helper.kill()
    helper.start_again()
    assert helper.client().executors() == []
    assert "exited" not in helper.events(alice.name), "what was never started cannot end"


DYING_DISK: Final = """\
import errno, os
def fdatasync(_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))
os.fdatasync = fdatasync
"""


def test_a_record_that_the_disk_did_not_take_ends_the_start_before_anything_is_executed(
    helper: HelperUnderTest, alice: OsUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written, and fdatasync(2) fails, as on a disk that is dying. The fault is injected."""
    *python, program, config, path = helper.command(stop_points=True)
    monkeypatch.setattr(helper, "command", lambda **_: [*python, DYING_DISK + program, config, path])
    helper.program_of(alice, "touch ran")
    helper.start()
    assert helper.client().ensure(alice.name)["reason"] == "audit_unavailable"
    wait_for(lambda: none_of(alice), 30.0, "the worker's end")
    assert not (helper.installation.workspace(alice) / "ran").exists()
    assert "Input/output error" in helper.log.read_text()


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


def ruin_tail(log: Path) -> None:
    with log.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(bytes(39))


def put_directory(log: Path) -> None:
    log.rename(log.with_name("kept"))
    log.mkdir()


def make_unreadable(log: Path) -> None:
    """Make opening it fail for root, too: a link is not followed."""
    log.rename(log.with_name("kept"))
    log.symlink_to("kept")


def read_only(log: Path) -> None:
    mount("-o", "remount,ro", log.parent)


def no_room_for_one(log: Path) -> None:
    log.rename(log.with_name("kept"))
    mount("-o", "remount,nr_inodes=2", log.parent)


def put_back(log: Path) -> None:
    mount("-o", "remount,rw,nr_inodes=0", log.parent)
    for unwanted in (log, *log.parent.glob("audit.jsonl.*")):
        if unwanted.is_dir() and not unwanted.is_symlink():
            unwanted.rmdir()
        elif log.with_name("kept").exists():
            unwanted.unlink(missing_ok=True)
    if log.with_name("kept").exists():
        log.with_name("kept").rename(log)


def move_away(log: Path) -> None:
    log.rename(log.with_name("damaged"))


AT_START: Final[dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]]] = {
    "a ruined tail": (ruin_tail, move_away),
    "a directory in its place": (put_directory, put_back),
    "a link in its place": (make_unreadable, put_back),
    "a read-only file system": (read_only, put_back),
    "no room for a file": (no_room_for_one, put_back),
}


@pytest.mark.parametrize("case", AT_START)
def test_a_helper_that_cannot_take_up_its_log_comes_up_adopts_starts_nothing_and_goes_on_when_it_is_mended(
    helper: HelperUnderTest, disk: Path, alice: OsUser, bob: OsUser, case: str
) -> None:
    harm, mend = AT_START[case]
    helper.start()
    pids = {user.name: helper.client().ensure(user.name)["pid"] for user in (alice, bob)}
    helper.kill()
    harm(disk / "audit.jsonl")
    helper.start_again()
    client = helper.client()
    assert {entry["user"]: entry["pid"] for entry in client.executors()} == pids
    assert client.ensure(alice.name)["pid"] == pids[alice.name]
    os.kill(pids[bob.name], signal.SIGKILL)
    assert client.wait_for_notice(user=bob.name)["seq"] > 0
    wait_for(lambda: client.ensure(bob.name)["reason"] == "audit_unavailable", 30.0, "a refusal for want of a log")
    assert none_of(bob)
    assert helper.log.read_text().count("nothing is started until this is mended") == 1
    mend(disk / "audit.jsonl")
    wait_for(helper.installation.audit_log.exists, 30.0, "the log")
    assert helper.wait_for_event(30.0, event="exited", user=bob.name)["pid"] == pids[bob.name]
    names = [record["event"] for record in helper.audit()]
    assert names[names.index("log_failed") :][:3] == ["log_failed", "helper_started", "exited"]
    wait_for(lambda: client.ensure(bob.name)["result"] == "started", 30.0, "a start")


@pytest.mark.parametrize("how", ["removed", "truncated", "replaced"])
@pytest.mark.usefixtures("disk")
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
