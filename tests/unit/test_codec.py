"""Bytes to messages: any bytes are a valid message or a ``ProtocolViolation``, and encoding is decoding's inverse."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import messages as m
from protocol.codec import ProtocolViolation, decode_reply, decode_request, encode_reply, encode_request

fuzz = settings(max_examples=150, deadline=None)

IDS = st.from_regex(r"\A[A-Za-z0-9-]{1,64}\Z").map(m.RequestId)
ANY_TEXT = st.text(st.characters(), max_size=40)
"""Every code point, lone surrogates and NUL too."""
SECONDS = st.floats(0, 2**40)
EXECUTOR = {
    "os_user": ANY_TEXT,
    "uid": st.integers(0, 2**32 - 1),
    "pid": st.integers(1, 2**22),
    "since": SECONDS,
    "cgroup": st.none() | st.integers(1, 2**64 - 1),
}
REQUESTS = st.one_of(
    st.builds(m.EnsureExecutor, IDS, ANY_TEXT),
    st.builds(m.ListExecutors, IDS, ANY_TEXT),
    st.builds(m.StopExecutor, IDS, ANY_TEXT),
    st.builds(m.SetDraining, IDS, st.booleans()),
)
ENTRIES = st.lists(st.builds(m.ExecutorEntry, user=ANY_TEXT, **EXECUTOR), max_size=3).map(tuple)
REPLIES = st.one_of(
    st.builds(m.Running, id=IDS, **EXECUTOR),
    st.builds(m.Started, id=IDS, **EXECUTOR),
    st.builds(m.Refused, IDS, st.sampled_from(m.RefusedReason)),
    st.builds(m.Failed, IDS, st.sampled_from(m.FailedReason), SECONDS),
    st.builds(m.Executors, IDS, ENTRIES, st.none() | ANY_TEXT, st.booleans(), st.integers(0, 2**31)),
    st.builds(m.Stopping, IDS),
    st.builds(m.Absent, IDS),
    st.builds(m.Draining, IDS, st.booleans()),
    st.builds(
        m.Exited,
        user=ANY_TEXT,
        uid=EXECUTOR["uid"],
        pid=EXECUTOR["pid"],
        status=st.none() | st.integers(-255, 255),
        seq=st.integers(1, 2**63),
    ),
)
ENSURE = {"v": 1, "id": "r-1", "op": "ensure", "user": "alice"}
IDENTITY = {"os_user": "alice", "uid": 1000, "pid": 7, "since": 1.5, "cgroup": None}
RUNNING = {"v": 1, "id": "r-1", "result": "running"} | IDENTITY
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


def frame(entries: object) -> bytes:
    return json.dumps(entries).encode()


@fuzz
@given(REQUESTS)
def test_a_request_survives_the_wire(request_: m.Request) -> None:
    assert decode_request(encode_request(request_)) == request_


@fuzz
@given(REPLIES)
def test_a_reply_or_notice_survives_the_wire(reply: m.Reply | m.Exited) -> None:
    assert decode_reply(encode_reply(reply)) == reply


def test_every_message_is_in_the_round_trip() -> None:
    """A message added to the vocabulary fails here until it is added to the strategies above."""
    assert set(m.Request.__args__) - {m.OtherVersion} == {
        m.EnsureExecutor,
        m.ListExecutors,
        m.StopExecutor,
        m.SetDraining,
    }
    assert len(m.Reply.__args__) + 1 == len(REPLIES.original_strategies)


@fuzz
@given(st.binary(max_size=1100))
def test_any_bytes_are_a_message_or_a_violation_and_nothing_else(data: bytes) -> None:
    only_violations(data)


@fuzz
@given(st.dictionaries(st.sampled_from([*ENSURE, *RUNNING, "notice", "on", "after", "x"]), JSON_VALUES))
def test_any_json_object_is_a_message_or_a_violation_and_nothing_else(entries: dict[str, object]) -> None:
    only_violations(frame(entries))


@fuzz
@given(st.sampled_from([ENSURE, RUNNING]), st.data())
def test_a_message_with_one_value_replaced_is_a_message_or_a_violation(
    message: dict[str, object], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(message)))
    only_violations(frame(message | {key: data.draw(JSON_VALUES)}))


@fuzz
@given(st.sampled_from([frame(ENSURE), frame(RUNNING)]), st.integers(0, 200), st.integers(0, 255))
def test_a_message_with_one_byte_replaced_is_a_message_or_a_violation(good: bytes, place: int, byte: int) -> None:
    place %= len(good)
    only_violations(good[:place] + bytes([byte]) + good[place + 1 :])


def only_violations(data: bytes) -> None:
    """Decode both ways; a message that comes out can be sent again and is then the same."""
    try:
        request = decode_request(data)
    except ProtocolViolation:
        pass
    else:
        if not isinstance(request, m.OtherVersion):
            assert decode_request(encode_request(request)) == request
    try:
        reply = decode_reply(data)
    except ProtocolViolation:
        pass
    else:
        assert decode_reply(encode_reply(reply)) == reply


NOT_REQUESTS = {
    "nothing": b"",
    "a list": b"[]",
    "a number": b"1",
    "a text": b'"ensure"',
    "null": b"null",
    "two objects": frame(ENSURE) * 2,
    "rubbish behind": frame(ENSURE) + b"x",
    "a byte order mark": b"\xef\xbb\xbf" + frame(ENSURE),
    "UTF-16": json.dumps(ENSURE).encode("utf-16"),
    "not UTF-8": frame(ENSURE).replace(b"alice", b"al\xffce"),
    "a surrogate in UTF-8": frame(ENSURE).replace(b"alice", b"\xed\xa0\x80"),
    "an overlong NUL": frame(ENSURE).replace(b"alice", b"\xc0\x80"),
    "a raw NUL": frame(ENSURE).replace(b"alice", b"al\0ce"),
    "a raw newline": frame(ENSURE).replace(b"alice", b"alice\n"),
    "a key twice": frame(ENSURE)[:-1] + b',"user":"bob"}',
    "a key twice with the same value": frame(ENSURE)[:-1] + b',"user":"alice"}',
    "a key twice, once escaped": frame(ENSURE)[:-1] + b',"\\u0075ser":"bob"}',
    "an extra key": frame(ENSURE | {"uid": 0}),
    "a key of another request": frame(ENSURE | {"on": True}),
    "a key that is missing": frame({key: ENSURE[key] for key in ("v", "id", "op")}),
    "no id": frame({key: ENSURE[key] for key in ("v", "op", "user")}),
    "no version": frame({key: ENSURE[key] for key in ("id", "op", "user")}),
    "an empty object": b"{}",
    "NaN": frame(ENSURE | {"user": float("nan")}),
    "Infinity": frame(ENSURE | {"user": float("inf")}),
    "NaN as version": frame(ENSURE | {"v": float("nan")}),
    "1e999": frame(ENSURE).replace(b'"v": 1', b'"v": 1e999'),
    "a float as version": frame(ENSURE | {"v": 1.0}),
    "true as version": frame(ENSURE | {"v": True}),
    "a text as version": frame(ENSURE | {"v": "1"}),
    "a negative version": frame(ENSURE | {"v": -1}),
    "an integer of 900 digits": frame(ENSURE).replace(b'"v": 1', b'"v": ' + b"9" * 900),
    "900 lists": b"[" * 900,
    "500 closed lists": b"[" * 500 + b"]" * 500,
    "150 objects": b'{"a":' * 150 + b"1" + b"}" * 150,
    "a deep value": frame(ENSURE).replace(b'"alice"', b"[" * 400 + b"]" * 400),
    "null for a user": frame(ENSURE | {"user": None}),
    "a number for a user": frame(ENSURE | {"user": 7}),
    "a list for a user": frame(ENSURE | {"user": ["alice"]}),
    "an empty id": frame(ENSURE | {"id": ""}),
    "an id of 65": frame(ENSURE | {"id": "a" * 65}),
    "an id with a newline": frame(ENSURE | {"id": "a\n"}),
    "an id with a blank": frame(ENSURE | {"id": "a b"}),
    "an id with a foreign digit": frame(ENSURE | {"id": "\u0661"}),
    "a number for an id": frame(ENSURE | {"id": 7}),
    "an unknown op": frame(ENSURE | {"op": "chown"}),
    "an op in capitals": frame(ENSURE | {"op": "ENSURE"}),
    "an op with a blank": frame(ENSURE | {"op": "ensure "}),
    "a list for an op": frame(ENSURE | {"op": ["ensure"]}),
    "0 for false": frame({"v": 1, "id": "a", "op": "drain", "on": 0}),
    "a reply": frame(RUNNING),
    "over the limit": frame(ENSURE | {"user": "a" * m.MAX_REQUEST}),
    "over the limit by blanks": frame(ENSURE).ljust(m.MAX_REQUEST + 1),
}


@pytest.mark.parametrize("data", NOT_REQUESTS.values(), ids=NOT_REQUESTS)
def test_what_is_no_request_is_a_violation_that_quotes_nothing(data: bytes) -> None:
    with pytest.raises(ProtocolViolation) as violation:
        decode_request(data)
    assert "alice" not in str(violation.value)
    assert len(str(violation.value)) < 80


NOT_REPLIES = {
    "5,000 digits, over the limit": frame(RUNNING).replace(b"1000", b"9" * 5000),
    "3,000 digits": frame(RUNNING).replace(b"1000", b"9" * 3000),
    "3,000 digits and a sign": frame(RUNNING).replace(b"1000", b"-" + b"9" * 3000),
    "3,900 lists": b"[" * 3900,
    "1,900 closed lists": b"[" * 1900 + b"]" * 1900,
    "seconds of 3,000 digits, which are no float": frame(RUNNING).replace(b"1.5", b"9" * 3000),
    "1e999 seconds": frame(RUNNING).replace(b"1.5", b"1e999"),
    "-1e999 seconds": frame(RUNNING).replace(b"1.5", b"-1e999"),
    "NaN seconds": frame(RUNNING | {"since": float("nan")}),
    "seconds before 1970": frame(RUNNING | {"since": -1}),
    "true for seconds": frame(RUNNING | {"since": True}),
    "true for a uid": frame(RUNNING | {"uid": True}),
    "a uid as a float": frame(RUNNING | {"uid": 1000.0}),
    "a negative uid": frame(RUNNING | {"uid": -1}),
    "a uid over 32 bits": frame(RUNNING | {"uid": 2**32}),
    "pid 0, which kill(2) takes for the group": frame(RUNNING | {"pid": 0}),
    "pid -1, which kill(2) takes for all": frame(RUNNING | {"pid": -1}),
    "cgroup 0": frame(RUNNING | {"cgroup": 0}),
    "a reason of a failure in a refusal": frame({"v": 1, "id": "a", "result": "refused", "reason": "draining"}),
    "a reason of a refusal in a failure": frame(
        {"v": 1, "id": "a", "result": "failed", "reason": "invalid_name", "retry_after": 1.0}
    ),
    "a reply that is a notice": frame(RUNNING | {"notice": "exited"}),
    "an unknown notice": frame({"v": 1, "notice": "started"}),
    "a notice with an id": frame({"v": 1, "notice": "exited", "id": "a"}),
    "another version": frame(RUNNING | {"v": 2}),
    "executors that are no list": frame(
        {"v": 1, "id": "a", "result": "executors", "executors": {}, "next": None, "draining": False, "free": 1}
    ),
    "an executor with an extra key": frame(
        {"v": 1, "id": "a", "result": "executors", "next": None, "draining": False, "free": 1, "executors": [RUNNING]}
    ),
    "a request": frame(ENSURE),
}


@pytest.mark.parametrize("data", NOT_REPLIES.values(), ids=NOT_REPLIES)
def test_what_is_no_reply_is_a_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_reply(data)


@pytest.mark.parametrize("version", [0, 2, 2**31])
def test_another_version_is_told_by_its_id_alone(version: int) -> None:
    """Whatever else it holds: it is answered ``unsupported_version``."""
    asked = decode_request(frame({"v": version, "id": "r-1", "anything": [None]}))
    assert asked == m.OtherVersion(id=m.RequestId("r-1"))


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "9" * 21])
def test_even_of_another_version_it_must_be_json_with_ordinary_numbers(number: str) -> None:
    with pytest.raises(ProtocolViolation):
        decode_request(b'{"v":2,"id":"r-1","x":%b}' % number.encode())


def test_a_name_outside_the_grammar_decodes_since_the_helper_answers_it() -> None:
    for user in ("", "a;id", "\ud800", "a\0b", "\u202e", "\u212a"):
        assert decode_request(frame(ENSURE | {"user": user})) == m.EnsureExecutor(m.RequestId("r-1"), user)


@fuzz
@given(st.integers(0, 1400).map(lambda n: "a" * n))
def test_a_request_fits_its_frame_or_is_not_sent(user: str) -> None:
    try:
        assert len(encode_request(m.EnsureExecutor(m.RequestId("r"), user))) <= m.MAX_REQUEST
    except ProtocolViolation:
        assert len(user) > m.MAX_REQUEST - 60


def test_a_page_over_the_limit_is_not_sent() -> None:
    entry = m.ExecutorEntry(user="u" * 32, os_user="u" * 32, uid=1000, pid=7, since=1.0, cgroup=1)
    with pytest.raises(ProtocolViolation):
        encode_reply(m.Executors(m.RequestId("r"), (entry,) * 100, None, draining=False, free=0))


def test_what_the_other_side_would_not_decode_is_not_sent() -> None:
    good = m.Running(id=m.RequestId("r"), os_user="alice", uid=1000, pid=7, since=1.0, cgroup=None)
    for changes in ({"uid": -1}, {"uid": True}, {"pid": 0}, {"since": float("nan")}, {"cgroup": 0}, {"id": "a b"}):
        with pytest.raises(ProtocolViolation):
            encode_reply(replace(good, **changes))
    with pytest.raises(ProtocolViolation):
        encode_request(m.OtherVersion(id=m.RequestId("r")))
