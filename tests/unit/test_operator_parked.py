"""What a parked message says of itself, which ones are meant, and how they are shown: hostile bytes throughout."""

import json
import os
import signal
import struct

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_listener import properties as p
from broker_listener.operator import parked
from broker_listener.operator.broker import Message
from broker_listener.operator.checks.broker import PARKED_ARGUMENTS
from broker_listener.operator.parking import shown
from broker_listener.operator.parking.interrupts import between_steps
from broker_listener.operator.parking.message import (
    MAX_READ,
    Criteria,
    Facts,
    NotRestorable,
    deliveries,
    facts_of,
    fingerprint,
    original,
    user_of,
)
from broker_listener.operator.parking.queue import PARKED
from broker_listener.operator.parking.walk import Taken

pytestmark = pytest.mark.library

ROOM = 131052
BODY = b'{"user": "alice"}'
ORIGINAL = p.Properties({"message_id": b"\2m1", "delivery_mode": b"\1"}, [(b"canHandle", b"t\0")]).encode()


def text(value: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(value)) + value


def parked_as(reason: str, at: str = "2026-11-25T01:02:03+00:00", raw: bytes = ORIGINAL) -> bytes:
    return p.parked(raw, reason, "why", at, "jobs", "new-work", ROOM)


def taken(body: bytes, raw: bytes, mark: int | None = None) -> Taken:
    return Taken(facts_of(body, raw), Message(1, body, raw, False, "", "q", 0), mark, False)


def with_header(raw: bytes, name: bytes, value: bytes) -> bytes:
    read = p.parse(raw)
    return p.Properties(read.fields, [*(read.headers or []), (name, value)]).encode()


def test_a_message_tells_its_facts() -> None:
    facts = facts_of(BODY, parked_as("start_failed"))
    assert (facts.user, facts.reason, facts.detail, facts.size) == ("alice", "start_failed", "why", len(BODY))
    assert (facts.parked_at, facts.exchange, facts.routing_key) == (1795568523.0, "jobs", "new-work")
    assert facts.id == facts_of(BODY, parked_as("not_json", "2026-11-26T01:02:03+00:00")).id, "the job's, as in the log"
    assert facts.id != facts_of(BODY, parked_as("start_failed", raw=b"\0\0")).id


@pytest.mark.parametrize(
    "at", ["", "soon", "2026-11-25T01:02:03", "9999-99-99T00:00:00+00:00", "0001-01-01T00:00:00+14:00"]
)
def test_a_time_that_is_none_is_no_time(at: str) -> None:
    assert facts_of(BODY, parked_as("not_json", at)).parked_at is None or at.startswith("0001")


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_bytes_make_reading_or_showing_a_message_raise_or_reach_the_terminal(body: bytes, raw: bytes) -> None:
    for bytes_of_it in (raw, parked_as("bad_properties", raw=raw), with_header(parked_as("not_json"), raw[:20], b"V")):
        one = taken(body, bytes_of_it)
        fingerprint(body, bytes_of_it)
        deliveries(bytes_of_it)
        page = shown.page(one, 100)
        assert all(character.isprintable() or character == "\n" for character in page)
        assert shown.whole_line(one, 100).isascii()
        json.loads(shown.whole_line(one, 100))


@pytest.mark.parametrize(
    ("body", "user"),
    [
        (b"[" * 100_000, None),
        (b'{"user": 1}', None),
        (b'{"user": "a;\\u001b"}', "a;\x1b"),
        (b'{"user": "alice", "n": %s}' % (b"1" * 10_000), "alice"),
        (b'{"user": "alice", "pad": "%s"}' % (b"x" * MAX_READ), None),
        (b'{"user": "%s"}' % (b"x" * 2000), "x" * 1000),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_the_user_of_a_body_is_a_text_or_none(body: bytes, user: str | None) -> None:
    assert user_of(body) == user


FACTS = Facts("00112233aabbccdd", "alice", "start_failed", None, 1000.0, None, None, 5)


@pytest.mark.parametrize(
    ("criteria", "is_met"),
    [
        (Criteria(), True),
        (Criteria(ids=("001122", "ffffff")), True),
        (Criteria(ids=("ffffff",)), False),
        (Criteria(user="alice", reason="start_failed"), True),
        (Criteria(user="alice", reason="not_json"), False),
        (Criteria(user="bob"), False),
        (Criteria(before=1000.0), False),
        (Criteria(before=1000.5, after=999.5), True),
        (Criteria(after=1000.0), False),
        (Criteria(in_doubt=True), False),
    ],
)
def test_every_condition_that_is_given_must_hold(criteria: Criteria, is_met: bool) -> None:  # noqa: FBT001 - parametrized
    assert criteria.match(FACTS, in_doubt=False) is is_met


def test_a_message_without_a_time_has_no_age_and_one_in_doubt_is_met_by_both() -> None:
    ageless = Facts("00112233aabbccdd", None, None, None, None, None, None, 5)
    assert not Criteria(before=2e9).match(ageless, in_doubt=False)
    assert not Criteria(after=0.0).match(ageless, in_doubt=False)
    assert Criteria().match(ageless, in_doubt=True)
    assert Criteria(in_doubt=True).match(ageless, in_doubt=True)


def test_what_a_quorum_queue_counts_changes_neither_fingerprint_nor_original() -> None:
    raw = parked_as("start_failed")
    counted = with_header(raw, b"x-delivery-count", b"l" + (11).to_bytes(8, "big"))
    assert (deliveries(raw), deliveries(counted)) == (0, 11)
    assert fingerprint(BODY, raw) == fingerprint(BODY, counted)
    assert original(counted, counted=True) == original(raw, counted=True) == ORIGINAL
    assert original(counted, counted=False) != ORIGINAL, "a classic queue sets none: then it was the message's own"


def test_messages_that_differ_in_anything_have_different_fingerprints() -> None:
    ones = [(BODY, parked_as("a")), (BODY, parked_as("b")), (BODY + b" ", parked_as("a"))]
    ones += [(BODY, parked_as("a", "2026-11-25T01:02:04+00:00"))]
    assert len({fingerprint(*one) for one in ones}) == 4


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (ORIGINAL, "not parked by the listener"),
        (p.parked(b"\0\1", "bad_properties", "", "", "", "", ROOM), "only a part"),
        (b"\0\1", "flags"),
    ],
)
def test_what_cannot_be_had_again_is_said(raw: bytes, why: str) -> None:
    with pytest.raises(NotRestorable, match=why):
        original(raw, counted=False)


@pytest.mark.parametrize(
    ("value", "is_shown"),
    [
        (text(b"a\xffb"), ("text", "a\\xffb")),
        (b"t\1", ("boolean", True)),
        (b"b\xff", ("int8", -1)),
        (b"B\xff", ("uint8", 255)),
        (b"s\x80\0", ("int16", -32768)),
        (b"u\x80\0", ("uint16", 32768)),
        (b"I\xff\xff\xff\xff", ("int32", -1)),
        (b"i\xff\xff\xff\xff", ("uint32", 4294967295)),
        (b"l" + b"\xff" * 8, ("int64", -1)),
        (b"T\0\0\0\0\0\0\0\1", ("timestamp", 1)),
        (b"d\x7f\xf8\0\0\0\0\0\0", ("double", "nan")),
        (b"f\x3f\xc0\0\0", ("float", "1.5")),
        (b"V", ("void", None)),
        (b"x\0\0\0\2\x1b\xff", ("bytes", "1bff")),
        (b"A\0\0\0\1V", ("array", "56")),
        (b"F\0\0\0\0", ("table", "")),
        (b"D\0\0\0\0\1", ("decimal", "0000000001")),
    ],
)
def test_every_type_of_a_header_is_shown(value: bytes, is_shown: tuple[str, object]) -> None:
    assert shown.value_of(value) == is_shown


def test_a_million_reasons_of_strangers_are_counted_in_bounded_memory_and_in_one_line() -> None:
    summary = shown.Summary()
    for number in range(5000):
        summary.add(Facts("0", f"u{number}\n\x1b", "r" * 1000, None, None, None, None, 0))
    assert str(summary).isprintable()
    assert len(str(summary)) < 1000
    assert "5000 messages" in str(summary)
    assert max(map(len, (summary._reasons, summary._users))) <= 1001


def test_a_signal_waits_for_the_end_of_a_step_and_a_second_one_does_not() -> None:
    told = []

    def step() -> None:
        with between_steps(lambda: told.append("once")) as is_over:
            assert not is_over()
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_over()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        step()
    assert told == ["once"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_queue_is_asked_for_as_the_listener_declares_it() -> None:
    assert PARKED == PARKED_ARGUMENTS


@pytest.mark.parametrize("name", ["list", "show", "retry", "drop"])
def test_each_help_says_what_it_does_and_its_exit_statuses(name: str) -> None:
    command = parked.command.commands[name]
    text_of_it = command.get_help(click.Context(command, info_name=name, max_content_width=100))
    for word in ("exit status:", "examples:", "--reason", "--older-than", "--json", "0 ", "1 ", "3 ", "4 "):
        assert word in text_of_it, word
