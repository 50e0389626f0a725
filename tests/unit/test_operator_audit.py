"""The audit log's chain as ``knime-peruser audit verify`` judges it, and its records as ``audit show`` finds them."""

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_listener.operator.audit_log import files, spans, table
from broker_listener.operator.audit_log.anchors import anchors_in
from broker_listener.operator.audit_log.chain import Chain, Kind, verified
from broker_listener.operator.audit_log.follow import following
from broker_listener.operator.audit_log.records import Query, Reader, last_of, parse_time
from protocol.record import FIRST_PREV, Event, Peer, sealed

pytestmark = pytest.mark.library

EVENTS = (
    Event(event="request", request_id="r-1", peer=Peer(997, 996, 302), op="ensure", user="Alice"),
    Event(event="started", request_id="r-1", user="Alice", os_user="alice", uid=1000, pid=4711),
    Event(event="result", request_id="r-1", user="Alice", decision="started", pid=4711, duration_ms=41.25),
    Event(event="result", request_id="r-2", user="a;\x1b\u202e\x7f", decision="refused", reason="invalid_name"),
)


def log(count: int, first: int = 1, prev: str = FIRST_PREV, **changes: str) -> list[bytes]:
    lines = []
    for seq in range(first, first + count):
        event = EVENTS[seq % len(EVENTS)]
        host = changes.get("host", "knime1")
        line, prev = sealed(event, seq=seq, prev=prev, time=1767225600.0 + seq / 4, host=host)
        lines.append(line)
    return lines


def judged(lines: Iterable[bytes], first: int = 1, anchors: list[tuple[int, str]] | None = None) -> Chain:
    chain = Chain(first)
    wanted = frozenset(seq for seq, _ in anchors or ())
    for piece in spans.pieces(lines, wanted, chain.found):
        chain.add(piece)
    chain.finish()
    chain.anchored(anchors or [])
    return chain


def faults(lines: Iterable[bytes], first: int = 1) -> list[tuple[int, int, Kind]]:
    return [(fault.record, fault.last, fault.kind) for fault in judged(lines, first).faults]


def hash_of(line: bytes) -> str:
    return str(json.loads(line)["hash"])


def test_a_log_that_nobody_touched_has_no_fault() -> None:
    chain = judged(log(40))
    assert (chain.records, chain.next, chain.faults, chain.digest) == (40, 41, [], hash_of(log(40)[-1]))


def test_a_flipped_byte_is_found_wherever_it_is_and_its_record_is_named() -> None:
    whole = b"".join(log(9))
    ends = [len(b"".join(log(9)[: number + 1])) for number in range(9)]
    for place in range(len(whole)):
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        number = next(index for index, end in enumerate(ends, 1) if place < end)
        found = faults(flipped.splitlines(keepends=True))
        assert any(one <= number <= last for one, last, _ in found), (number, flipped, found)
        assert all(one in (number, number + 1) for one, _, _ in found), (number, flipped, found)


@given(st.integers(1, 20), st.integers(1, 3))
def test_removed_records_are_named_and_nothing_else(number: int, count: int) -> None:
    lines = log(25)
    del lines[number - 1 : number - 1 + count]
    assert faults(lines) == [(number, number + count - 1, Kind.MISSING)]


def test_removed_records_at_the_beginning_are_named() -> None:
    assert faults(log(9)[2:]) == [(1, 2, Kind.MISSING)]


@given(st.integers(1, 19))
def test_two_swapped_records_are_one_fault_at_the_number_of_the_earlier_one(number: int) -> None:
    lines = log(20)
    lines[number - 1], lines[number] = lines[number], lines[number - 1]
    assert faults(lines) == [(number, number, Kind.OUT_OF_ORDER)]


def test_a_block_that_was_moved_to_the_end_is_named_by_its_records() -> None:
    lines = log(20)
    assert faults(lines[:5] + lines[9:] + lines[5:9]) == [(6, 9, Kind.OUT_OF_ORDER)]


def test_two_blocks_that_were_swapped_are_named() -> None:
    lines = log(20)
    assert faults(lines[:5] + lines[12:15] + lines[8:12] + lines[5:8] + lines[15:]) == [
        (6, 8, Kind.OUT_OF_ORDER),
        (9, 12, Kind.OUT_OF_ORDER),
    ]


def test_a_record_that_stands_twice_is_named() -> None:
    lines = log(9)
    assert faults([*lines[:7], lines[3], *lines[7:]]) == [(4, 4, Kind.TWICE)]


def test_a_record_that_was_rewritten_together_with_its_hash_is_named() -> None:
    lines = log(9)
    forged, _ = sealed(EVENTS[0], seq=5, prev=hash_of(lines[3]), time=1.0, host="other")
    assert faults([*lines[:4], forged, *lines[5:]]) == [(5, 5, Kind.REPLACED)]


def test_a_line_that_is_no_record_is_named_by_where_it_stands() -> None:
    lines = log(9)
    assert faults([*lines[:4], b"garbage\n", *lines[4:]]) == [(5, 5, Kind.NO_RECORD)]
    assert faults([*lines[:4], b"garbage\n", *lines[5:]]) == [(5, 5, Kind.NO_RECORD)]
    assert faults([*lines[:4], b"{}\n", b"[]\n", *lines[6:]]) == [(5, 5, Kind.NO_RECORD), (6, 6, Kind.NO_RECORD)]


def test_a_last_line_without_an_end_is_said_to_be_one() -> None:
    lines = log(9)
    assert faults([*lines[:8], lines[8][:100]]) == [(9, 9, Kind.TORN)]


def test_several_faults_are_each_named_in_order() -> None:
    lines = log(60)
    lines[9] = lines[9].replace(b"knime1", b"knime2")
    lines[30], lines[31] = lines[31], lines[30]
    del lines[50]
    assert faults(lines) == [(10, 10, Kind.CHANGED), (31, 31, Kind.OUT_OF_ORDER), (51, 51, Kind.MISSING)]


def test_a_log_of_faults_alone_is_judged_in_bounded_memory() -> None:
    chain = judged(b"garbage\n" for _ in range(5000))
    assert (len(chain.faults), chain.faults_not_kept, chain.records) == (1000, 4000, 0)


def test_a_cut_end_is_no_fault_of_the_chain_and_shows_with_an_anchor() -> None:
    lines = log(20)
    anchor = (20, hash_of(lines[-1]))
    assert judged(lines, 1, [anchor]).faults == []
    assert faults(lines[:15]) == []
    (fault,) = judged(lines[:15], 1, [anchor]).faults
    assert (fault.record, fault.last, fault.kind) == (16, 20, Kind.CUT_OFF)


def test_a_chain_that_was_rewritten_from_the_middle_shows_with_an_anchor() -> None:
    lines = log(20)
    forged = [*lines[:9], *log(11, 10, hash_of(lines[8]), host="other")]
    assert faults(forged) == []
    anchors = [(seq, hash_of(lines[seq - 1])) for seq in (5, 12, 20)]
    found = judged(forged, 1, anchors).faults
    assert [(fault.record, fault.kind) for fault in found] == [(12, Kind.REWRITTEN), (20, Kind.REWRITTEN)]
    assert all("from record 6 or later" in fault.seen for fault in found)


def test_an_anchor_of_a_record_that_is_not_kept_any_more_proves_nothing_and_is_no_fault() -> None:
    lines = log(20)
    chain = judged(lines[10:], 11, [(5, hash_of(lines[4]))])
    assert (chain.faults, chain.found) == ([], {})


def test_anchors_are_found_in_any_text_and_what_is_none_is_passed_over() -> None:
    digest = hash_of(log(1)[0])
    text = [
        f"Nov 25 04:43 host knime-root-helper[1]: INFO audit: audit-anchor 7 {digest}\n".encode(),
        f'{{"MESSAGE":"audit-anchor 8 {digest}"}}\n'.encode(),
        b"audit-anchor 9 abc\n",
        f"audit-anchor 0 {FIRST_PREV}\n".encode(),
        b"\xff\x00\n",
    ]
    assert anchors_in(text) == [(7, digest), (8, digest)]


TEXT = st.none() | st.text(max_size=90)
ANY_EVENT = st.builds(
    Event,
    event=TEXT.filter(lambda text: text is not None),
    peer=st.none() | st.builds(Peer, st.integers(), st.integers(), st.integers()),
    user=TEXT,
    reason=TEXT,
    uid=st.none() | st.integers(),
    duration_ms=st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
)


@given(ANY_EVENT, st.floats(0, 2**40), st.integers(1, 2**40))
def test_the_quick_way_and_the_thorough_one_give_the_same_facts(event: Event, at: float, seq: int) -> None:
    line, digest = sealed(event, seq=seq, prev=FIRST_PREV, time=at, host="knime1")
    thorough = spans._thoroughly(line)
    assert thorough == (seq, FIRST_PREV, digest, digest)
    assert spans._quickly(line) in (None, thorough)


@given(st.binary(max_size=200) | st.integers(0, 600), st.binary(max_size=8))
def test_any_bytes_are_a_record_or_none_and_the_quick_way_takes_nothing_else(at: bytes | int, put: bytes) -> None:
    line = at if isinstance(at, bytes) else log(2)[1][:at] + put + log(2)[1][at + len(put) :]
    assert spans._quickly(line) in (None, spans._thoroughly(line))


def test_the_usual_records_take_the_quick_way() -> None:
    """Else a million of them would take half a minute. The one with an escape in its user's name takes the other."""
    assert [spans._quickly(line) is None for line in log(4)] == [False, False, True, False]


def test_numbers_in_another_spelling_are_no_record() -> None:
    line = log(3)[1]
    for old, new in ((b'"time":1767225600.5', b'"time":1767225600.50'), (b'"uid":', b'"uid": ')):
        assert old in line
        assert spans._quickly(line.replace(old, new)) is spans._thoroughly(line.replace(old, new)) is None


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    """Give a log of 30 records in three files."""
    lines = log(30)
    path = tmp_path / "audit.jsonl"
    path.with_name("audit.jsonl.1").write_bytes(b"".join(lines[:9]))
    path.with_name("audit.jsonl.10").write_bytes(b"".join(lines[9:20]))
    path.write_bytes(b"".join(lines[20:]))
    path.with_name("audit.jsonl.new").write_bytes(b"")
    path.with_name("audit.jsonl.gz").write_bytes(b"x")
    return path


def read(path: Path) -> list[bytes]:
    with files.opened(path) as there:
        return [line for file in there for line in files.lines(file)]


def test_rotated_files_are_read_in_the_order_of_their_records(rotated: Path) -> None:
    assert read(rotated) == log(30)
    with files.opened(rotated) as there:
        assert [file.first for file in there] == [1, 10, None]
        assert verified(there, 1, []).faults == []


def test_a_rotation_while_the_log_is_read_takes_nothing_away(rotated: Path) -> None:
    with files.opened(rotated) as there:
        rotated.rename(rotated.with_name("audit.jsonl.21"))
        rotated.write_bytes(log(1, 31)[0])
        assert [line for file in there for line in files.lines(file)] == log(30)
    assert len(read(rotated)) == 31


def test_a_file_that_is_rotated_between_two_looks_is_read_once(rotated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files.rotated

    def rotate_first(path: Path) -> list[tuple[int, Path]]:
        path.rename(path.with_name("audit.jsonl.21"))
        path.write_bytes(log(1, 31)[0])
        return before(path)

    monkeypatch.setattr(files, "rotated", rotate_first)
    assert read(rotated) == log(30)


def test_a_line_without_end_is_cut_and_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"x" * 5_000_000 + b"\n" + log(1)[0])
    first, second = read(path)
    assert len(first) == files.MAX_LINE + 1
    assert second == log(1)[0]


def test_following_gives_what_is_written_later_over_two_rotations_at_once(rotated: Path) -> None:
    later = log(12, 31)
    with files.opened(rotated) as there:
        lines = following(rotated, there)
        with rotated.open("ab") as file:
            file.write(later[0] + later[1][:50])
            file.flush()
            assert next(lines) == later[0]
            file.write(later[1][50:] + later[2])
        rotated.rename(rotated.with_name("audit.jsonl.21"))
        rotated.write_bytes(b"".join(later[3:6]))
        rotated.rename(rotated.with_name("audit.jsonl.34"))
        rotated.write_bytes(b"".join(later[6:8]))
        assert [next(lines) for _ in range(7)] == later[1:8]
        with rotated.open("ab", 0) as file:
            writer = threading.Timer(0.05, file.write, [later[8]])
            writer.start()
            assert next(lines) == later[8]
            writer.join()
        lines.close()  # type: ignore[attr-defined]


def matching(query: Query, lines: list[bytes]) -> tuple[list[int], int]:
    reader = Reader(query)
    return [int(str(record["seq"])) for record in reader.matching(lines)], reader.no_records


def test_records_are_found_by_every_condition_that_is_given() -> None:
    lines = log(8)
    assert matching(Query(), lines) == (list(range(1, 9)), 0)
    assert matching(Query(user="Alice", event="result"), lines) == ([2, 6], 0)
    assert matching(Query(os_user="alice"), lines) == ([1, 5], 0)
    assert matching(Query(user="a;\x1b\u202e\x7f"), lines) == ([3, 7], 0)
    assert matching(Query(decision="refused", reason="invalid_name"), lines) == ([3, 7], 0)
    assert matching(Query(since=1767225600.5, until=1767225601.0), lines) == ([2, 3], 0)
    assert matching(Query(user="Alice"), [b"garbage\n", b"[]\n", lines[0]]) == ([1], 0)
    assert matching(Query(), [b"garbage\n", b"[]\n", b"[" * 9000, lines[0]]) == ([1], 3)


@pytest.mark.parametrize("line", [b'{"time": NaN}', b'{"time": -Infinity}', b'{"time": 1e999}', b'{"user": "\xff"}'])
def test_a_record_that_no_other_reader_takes_is_none(line: bytes) -> None:
    """Python's json reads it, and could not print it again as JSON that other programs read."""
    assert matching(Query(), [line]) == ([], 1)


def test_the_last_records_are_given_in_their_order() -> None:
    records = [{"seq": number} for number in range(9)]
    assert list(last_of(iter(records), 3)) == records[-3:]
    assert list(last_of(iter(records), 0)) == records


def test_a_time_is_a_date_a_moment_or_how_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert parse_time("2026-03-03", now=0) == 1772492400.0
        assert parse_time("2026-03-03", now=0, end=True) == 1772492400.0 + 86400
        assert parse_time("2026-03-29", now=0, end=True) - parse_time("2026-03-29", now=0) == 23 * 3600
        assert parse_time("2026-03-03T01:00+00:00", now=0, end=True) == 1772499600.0
        assert parse_time("2h", now=10_000) == 2800
        for wrong in ("", "yesterday", "2026-13-01", "-1h", "1w", "9" * 12 + "d"):
            with pytest.raises((ValueError, OverflowError)):
                parse_time(wrong, now=0)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_a_caller_sent_is_shown_escaped_and_a_record_of_nonsense_does_not_stop_the_table() -> None:
    hostile = {"seq": "\x1b[2J", "time": "x", "event": ["\n"], "user": "a\r\n\u202eb\x9b", "reason": "\x07", "peer": {}}
    for text in table.lines([hostile, json.loads(log(4)[2]), {"time": 1e300}, {}], width=10_000):
        assert text.isprintable()


def test_what_is_wider_than_the_terminal_goes_on_below_and_nothing_is_lost() -> None:
    record = json.loads(log(3)[2])
    (narrow,) = table.lines([record], width=80, headed=False)
    (wide,) = table.lines([record], width=10_000, headed=False)
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.split() == wide.split()


def test_a_log_that_may_not_be_read_or_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no audit log is there"), files.opened(tmp_path / "audit.jsonl"):
        pass
    with pytest.raises(Exception, match="cannot be read"), files.opened(tmp_path / "nowhere/audit.jsonl"):
        pass
