"""The audit log on a real file system: its chain, its rotation, its repair, and that it fails closed. Needs root."""

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.record import FIRST_PREV, Event, Peer, fault_in
from root_helper.audit import AuditLog, AuditUnavailable
from tests.lab.file_trees import in_private_mounts, mount

pytestmark = pytest.mark.needs("root")

START = Event(event="request", user="alice", op="ensure", request_id="r-1")
HOSTILE = ["\n", "\r\n", '"}\n{"seq":1}', "\u2028", "\x85", "\x1b[2K", "\x7f", "\0", "\ud800", "\u202e", "x" * 5000]


def opened(directory: Path, *, rotate_size: int = 2**30, keep_days: int = 90) -> AuditLog:
    path = str(directory / "audit.jsonl")
    return AuditLog(path, rotate_size=rotate_size, keep_days=keep_days, adm=4, host="knime1")


def files_of(directory: Path) -> list[Path]:
    """Give the files of the log, oldest first."""
    rotated = sorted(directory.glob("audit.jsonl.[0-9]*"), key=lambda path: int(path.suffix[1:]))
    return [*rotated, directory / "audit.jsonl"]


def chain_of(directory: Path) -> list[dict[str, Any]]:
    """Give the records of all files, after checking that each follows from the one before."""
    records: list[dict[str, Any]] = []
    prev = FIRST_PREV
    for line in b"".join(path.read_bytes() for path in files_of(directory)).splitlines(keepends=True):
        record = json.loads(line)
        assert line.endswith(b"\n")
        assert fault_in(record, seq=len(records) + 1, prev=prev) is None
        records.append(record)
        prev = record["hash"]
    return records


def records_until_full(log: AuditLog) -> int:
    """Write until that is impossible; give how many were written."""
    for written in range(1000):
        try:
            log.record(START)
        except AuditUnavailable:
            return written
    raise AssertionError("the disk is not full")


def test_the_file_is_roots_and_readable_by_auditors_only(tmp_path: Path) -> None:
    opened(tmp_path)
    facts = (tmp_path / "audit.jsonl").stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (0, 4, 0o640)


def test_a_symlink_in_the_files_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditUnavailable):
        opened(tmp_path).record(START)
    assert not (tmp_path / "elsewhere").exists()


def test_the_chain_goes_on_over_restarts(tmp_path: Path) -> None:
    for n in range(4):
        log = opened(tmp_path)
        assert [log.record(START) for _ in range(3)] == [3 * n + 1, 3 * n + 2, 3 * n + 3]
    assert len(chain_of(tmp_path)) == 12


@pytest.mark.parametrize("kept", [1, 100, -1])
def test_a_torn_last_line_is_cut_off_and_said(tmp_path: Path, kept: int) -> None:
    log = opened(tmp_path)
    for _ in range(3):
        log.record(START)
    path = tmp_path / "audit.jsonl"
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:kept])
    opened(tmp_path).record(START)
    records = chain_of(tmp_path)
    assert [record["event"] for record in records] == ["request", "request", "log_repaired", "request"]
    assert str(len(last[:kept])) in records[2]["reason"]


def test_zeros_that_a_power_cut_left_are_cut_off(tmp_path: Path) -> None:
    opened(tmp_path).record(START)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(bytes(4096))
    opened(tmp_path)
    assert [record["event"] for record in chain_of(tmp_path)] == ["request", "log_repaired"]


DAMAGED = {
    "no JSON": b"not JSON\n",
    "no object": b"[]\n",
    "no hash": b'{"seq":1}\n',
    "wrong types": b'{"seq":"x","hash":"y","prev":0}\n',
    "a hash of nothing": b'{"seq":1,"hash":"y","prev":"z"}\n',
    "no line": b"x" * 9000,
    "a thousand levels": b"[" * 5000 + b"\n",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_log_that_cannot_be_continued_is_left_as_it_is_and_one_that_is_moved_away_is_begun_anew(
    tmp_path: Path, case: str
) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(DAMAGED[case])
    log = opened(tmp_path)
    log.tick(1.0)
    assert str(path) in str(log.fault)
    with pytest.raises(AuditUnavailable):
        log.record(START)
    assert path.read_bytes() == DAMAGED[case]
    path.rename(tmp_path / "damaged")
    log.tick(2.0)
    assert log.fault is None
    log.record(START)
    assert [record["event"] for record in chain_of(tmp_path)] == ["log_failed", "request"]


def test_a_log_whose_last_record_was_edited_is_not_continued(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for _ in range(2):
        log.record(START)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"alice", b"mally"))
    assert "hash does not match" in str(opened(tmp_path).fault)


def test_what_makes_the_log_fail_is_said_once_and_written_when_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = opened(tmp_path)
    (tmp_path / "audit.jsonl").rename(tmp_path / "stolen")
    for now in range(10):
        log.tick(float(now))
        with pytest.raises(AuditUnavailable):
            log.record(START)
    assert len([entry for entry in caplog.records if entry.levelname == "ERROR"]) == 1
    log.record_end(Event(event="exited", user="alice"))
    (tmp_path / "stolen").rename(tmp_path / "audit.jsonl")
    assert log.is_writable()
    assert [record["event"] for record in chain_of(tmp_path)] == ["log_failed", "exited"]


def test_rotation_keeps_the_chain_and_names_files_by_their_first_record(tmp_path: Path) -> None:
    log = opened(tmp_path, rotate_size=2000)
    for _ in range(30):
        log.record(START)
    opened(tmp_path, rotate_size=2000).record(START)
    assert len(chain_of(tmp_path)) == 31
    assert len(files_of(tmp_path)) > 3
    for path in files_of(tmp_path)[:-1]:
        assert json.loads(path.read_bytes().splitlines()[0])["seq"] == int(path.suffix[1:])
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_crash_in_mid_rotation_loses_no_link(tmp_path: Path) -> None:
    """Between the two renames there is no current file; a new one that nothing was written to may lie beside."""
    log = opened(tmp_path)
    for _ in range(3):
        log.record(START)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit.jsonl.1")
    (tmp_path / "audit.jsonl.new").touch()
    log = opened(tmp_path, rotate_size=1500)
    for _ in range(6):
        log.record(START)
    assert len(chain_of(tmp_path)) == 9
    assert (tmp_path / "audit.jsonl.4").exists()


def test_a_crash_in_mid_rotation_with_a_torn_first_line_is_repaired(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.record(START)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit.jsonl.1")
    (tmp_path / "audit.jsonl").write_bytes(b'{"decision":nu')
    opened(tmp_path)
    assert [record["event"] for record in chain_of(tmp_path)] == ["request", "log_repaired"]


def test_a_rotation_that_fails_changes_nothing_and_is_tried_again(tmp_path: Path) -> None:
    log = opened(tmp_path, rotate_size=1)
    log.record(START)
    (tmp_path / "audit.jsonl.new").mkdir()
    for _ in range(3):
        with pytest.raises(AuditUnavailable):
            log.record(START)
    assert len(files_of(tmp_path)) == 1
    (tmp_path / "audit.jsonl.new").rmdir()
    log.record(START)
    assert [record["event"] for record in chain_of(tmp_path)] == ["request", "log_failed", "request"]


def test_files_older_than_kept_are_removed_at_rotation_and_younger_ones_stay(tmp_path: Path) -> None:
    log = opened(tmp_path, rotate_size=1, keep_days=1)
    for _ in range(4):
        log.record(START)
    old = tmp_path / "audit.jsonl.1"
    os.utime(old, (0, 0))
    (tmp_path / "audit.jsonl.notes").touch()
    os.utime(tmp_path / "audit.jsonl.notes", (0, 0))
    log.record(START)
    assert not old.exists()
    assert (tmp_path / "audit.jsonl.2").exists()
    assert (tmp_path / "audit.jsonl.notes").exists(), "not one of ours"


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


INTERFERENCE: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "truncated": lambda path: os.truncate(path, 10),
    "emptied": lambda path: os.truncate(path, 0),
    "appended to": append,
    "moved away": lambda path: path.rename(path.with_name("stolen")),
    "replaced": lambda path: path.rename(path.with_name("stolen")).with_name("audit.jsonl").touch(),
}


@pytest.mark.parametrize("how", INTERFERENCE)
@pytest.mark.parametrize("rotate_size", [2**30, 1])
def test_a_file_that_somebody_else_changed_takes_no_record_more(tmp_path: Path, how: str, rotate_size: int) -> None:
    log = opened(tmp_path, rotate_size=rotate_size)
    log.record(START)
    INTERFERENCE[how](tmp_path / "audit.jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(AuditUnavailable):
        log.record(START)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_ends_a_line_or_forges_one(tmp_path: Path, text: str) -> None:
    log = opened(tmp_path)
    log.record(Event(event="request", user=f"alice{text}bob"))
    raw = (tmp_path / "audit.jsonl").read_bytes()
    assert len(raw.splitlines()) == 1
    assert raw[:-1].decode("ascii").isprintable()
    assert len(raw) < 2000
    assert len(chain_of(tmp_path)) == 1


def test_what_callers_cause_at_will_is_bounded_and_the_rest_is_counted(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for _ in range(1000):
        log.note(Event(event="list", reason="list"), 50.0)
    for n in range(10):
        log.note(Event(event="dropped", reason="bad_frame"), 51.0 + n / 2)
    assert len(chain_of(tmp_path)) == 205
    log.tick(100.0)
    log.tick(110.0)
    assert [record["reason"] for record in chain_of(tmp_path)[205:]] == ["bad_frame=5 list=800"]
    log.tick(161.0)
    assert len(chain_of(tmp_path)) == 206, "nothing was left out since"


def test_a_busy_listener_hides_no_stranger(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for _ in range(1000):
        log.note(Event(event="list"), 50.0)
    log.note(Event(event="refused_peer", peer=Peer(1, 1, 1), reason="stranger"), 50.0)
    assert chain_of(tmp_path)[-1]["event"] == "refused_peer"


def test_starts_and_ends_are_written_however_much_is_suppressed(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for _ in range(1000):
        log.note(Event(event="list"), 50.0)
    log.record(START)
    log.record_end(Event(event="exited", user="alice"))
    assert [record["event"] for record in chain_of(tmp_path)[-2:]] == ["request", "exited"]


def test_an_anchor_is_told_at_start_at_rotation_and_every_thousand_records(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="audit")
    log = opened(tmp_path)
    for _ in range(2000):
        log.record(START)
    assert [record.getMessage().split()[:2] for record in caplog.records] == [
        ["audit-anchor", "0"],
        ["audit-anchor", "1000"],
        ["audit-anchor", "2000"],
    ]
    assert caplog.records[-1].getMessage().split()[2] == chain_of(tmp_path)[-1]["hash"]


@pytest.mark.needs("mount namespace")
def test_a_full_disk_takes_no_half_record_and_keeps_the_ends(tmp_path: Path) -> None:
    """On a tmpfs of three pages: a record either fits or leaves nothing."""

    def scenario() -> tuple[int, list[str], bool]:
        mount("-t", "tmpfs", "-o", "size=12k", "tmpfs", tmp_path)
        log = opened(tmp_path)
        written = records_until_full(log)
        whole = (tmp_path / "audit.jsonl").read_bytes().endswith(b"\n")
        for n in range(3):
            log.record_end(Event(event="exited", user="alice", pid=n + 1))
        with pytest.raises(AuditUnavailable):
            log.record(START)
        assert len(chain_of(tmp_path)) == written
        mount("-o", "remount,size=64k", tmp_path)
        log.tick(1.0)
        return written, [record["event"] for record in chain_of(tmp_path)[written:]], whole

    written, later, whole = in_private_mounts(scenario)
    assert 5 < written < 100
    assert whole
    assert later == ["log_failed", "exited", "exited", "exited"]


@pytest.mark.needs("mount namespace")
def test_a_read_only_file_system_is_said_at_once(tmp_path: Path) -> None:
    def scenario() -> str:
        mount("-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path)
        return str(opened(tmp_path).fault)

    assert os.strerror(errno.EROFS) in in_private_mounts(scenario)


def test_ends_kept_in_memory_are_bounded(tmp_path: Path) -> None:
    log = opened(tmp_path)
    (tmp_path / "audit.jsonl").unlink()
    for n in range(5000):
        log.record_end(Event(event="exited", pid=n + 1))
    assert len(log._owed) <= 1000
