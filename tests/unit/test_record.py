"""One audit record: its format is an interface, and no change to it goes unseen."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.record import FIRST_PREV, MAX_TEXT, Event, Peer, canonical, fault_in, record_hash, sealed, shown

GOLDEN = Path(__file__).with_name("audit_record.golden.jsonl")
EVENTS = (
    Event(event="helper_started", pid=311),
    Event(event="request", request_id="r-1", peer=Peer(997, 996, 302), op="ensure", user="Alice"),
    Event(event="started", request_id="r-1", op="ensure", user="Alice", os_user="alice", uid=1000, pid=4711),
    Event(event="result", request_id="r-1", user="Alice", decision="started", pid=4711, duration_ms=41.25),
    Event(event="result", request_id="r-2", user="a;id\n\u202e" + "x" * 90, decision="refused", reason="invalid_name"),
)
KEYS = "decision duration_ms event hash host op os_user peer pid prev reason request_id seq time uid user"
SENT = st.none() | st.text(st.characters() | st.sampled_from("\n\x7f\x1b\u202e"), max_size=100)
OWN = st.none() | st.text("ab ", max_size=100)
ANY_EVENT = st.builds(
    Event,
    event=st.sampled_from(["request", "result", "exited"]),
    peer=st.none() | st.builds(Peer, st.integers(0, 2**32), st.integers(0, 2**32), st.integers(0, 2**22)),
    user=SENT,
    os_user=OWN,
    reason=OWN,
    uid=st.none() | st.integers(0, 2**32),
    duration_ms=st.none() | st.floats(0, 2**40),
)


def chain(events: tuple[Event, ...]) -> list[bytes]:
    lines, prev = [], FIRST_PREV
    for seq, event in enumerate(events, start=1):
        line, prev = sealed(event, seq=seq, prev=prev, time=1767225600.0 + seq / 4, host="knime1.example.com")
        lines.append(line)
    return lines


def test_the_format_is_the_one_that_auditors_rely_on() -> None:
    """The golden file is never regenerated to make this pass: a change of format is announced."""
    assert b"".join(chain(EVENTS)) == GOLDEN.read_bytes()


def test_the_golden_log_is_a_whole_chain() -> None:
    prev = FIRST_PREV
    for seq, line in enumerate(GOLDEN.read_text(encoding="ascii").splitlines(), start=1):
        record = json.loads(line)
        assert fault_in(record, seq=seq, prev=prev) is None
        assert " ".join(sorted(record)) == KEYS
        prev = record["hash"]


@settings(max_examples=150, deadline=None)
@given(ANY_EVENT)
def test_whatever_a_caller_sent_is_one_line_of_printable_ascii_that_verifies(event: Event) -> None:
    line, digest = sealed(event, seq=7, prev="f" * 64, time=1.5, host="h")
    assert line.endswith(b"\n")
    assert line[:-1].isascii()
    assert line[:-1].decode("ascii").isprintable()
    record = json.loads(line)
    assert record["hash"] == digest
    assert fault_in(record, seq=7, prev="f" * 64) is None
    assert canonical(record) + b"\n" == line


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(range(len(EVENTS))), st.data())
def test_a_changed_value_shows(number: int, data: st.DataObject) -> None:
    record = json.loads(chain(EVENTS)[number])
    prev = record["prev"]
    key = data.draw(st.sampled_from(sorted(record)))
    value = data.draw(st.none() | st.text(max_size=5) | st.integers() | st.floats())
    changed = record | {key: value}
    if json.dumps(changed) != json.dumps(record):
        assert fault_in(changed, seq=number + 1, prev=prev) is not None


def test_a_removed_an_added_and_a_reordered_record_show() -> None:
    first, second, third = (json.loads(line) for line in chain(EVENTS[:3]))
    assert fault_in(third, seq=2, prev=first["hash"]) == "seq is 3, 2 was expected"
    renumbered = third | {"seq": 2}
    renumbered["hash"] = record_hash(renumbered)
    assert fault_in(renumbered, seq=2, prev=first["hash"]) == "prev is not the hash of the record before"
    assert fault_in(second | {"note": "added"}, seq=2, prev=first["hash"]) == "hash does not match the record"
    del second["user"]
    assert fault_in(second, seq=2, prev=first["hash"]) == "hash does not match the record"


@pytest.mark.parametrize("record", [{}, {"seq": 1, "prev": FIRST_PREV}, {"seq": 1, "prev": FIRST_PREV, "hash": None}])
def test_a_record_that_lacks_a_key_is_a_fault_and_no_crash(record: dict[str, object]) -> None:
    assert fault_in(record, seq=1, prev=FIRST_PREV) is not None


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_json_has_not_is_a_fault_and_no_crash(number: str) -> None:
    """Python's parser takes them, so an edited log can hold them."""
    record = json.loads(chain(EVENTS[:1])[0]) | {"duration_ms": json.loads(number)}
    assert fault_in(record, seq=1, prev=FIRST_PREV) == "hash does not match the record"


def test_what_a_caller_sent_is_cut() -> None:
    assert shown(None) is None
    assert shown("a" * MAX_TEXT) == "a" * MAX_TEXT
    assert shown("a" * 5000) == "a" * MAX_TEXT + "..."


@pytest.mark.parametrize("character", ["\x7f", "\x1b", "\n", "\r", "\x9b", "\u2028", "\u202e", "\0", "\ud800"])
def test_no_control_character_of_a_caller_reaches_the_terminal_of_who_reads_the_log(character: str) -> None:
    line, _ = sealed(Event(event="request", user=f"a{character}b"), seq=1, prev=FIRST_PREV, time=1.0, host="h")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])


def test_the_hash_does_not_depend_on_the_order_of_the_keys_or_on_a_hash_in_the_record() -> None:
    assert record_hash({"a": 1, "b": 2}) == record_hash({"b": 2, "a": 1, "hash": "x"})
