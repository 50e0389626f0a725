"""What is a job and what is parked as none: any bytes give one or the other and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_listener.jobs import Job, NoJobReason, NotAJob, read_job
from protocol.names import parse_user_name

LIMIT = 262_144


def reason_of(body: bytes) -> NoJobReason | None:
    result = read_job(body, LIMIT)
    return result.reason if isinstance(result, NotAJob) else None


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_job_or_a_reason_why_not(body: bytes) -> None:
    result = read_job(body, 1000)
    assert isinstance(result, Job | NotAJob)
    if isinstance(result, NotAJob):
        assert result.detail.isascii()
        assert len(result.detail) <= 200


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.just("user"), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(value=_JSON, ascii_only=st.booleans())
def test_any_json_is_a_job_exactly_if_its_user_is_in_the_grammar(value: object, *, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    user = value.get("user") if isinstance(value, dict) else None
    named = isinstance(user, str) and parse_user_name(user, qualified=True) is not None
    assert isinstance(read_job(body, LIMIT), Job) == named


def test_the_user_is_read_as_it_is_written_case_included() -> None:
    assert read_job(b'{"id": 7, "user": "Bob.Smith", "more": {"a": [1.5, null]}}', LIMIT) == Job("Bob.Smith")


def test_a_qualified_name_is_a_job_since_the_helper_decides_about_domains() -> None:
    assert read_job(b'{"user": "bob@example.org"}', LIMIT) == Job("bob@example.org")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", NoJobReason.NOT_JSON),
        (b"{", NoJobReason.NOT_JSON),
        (b'{"user": "bob"} x', NoJobReason.NOT_JSON),
        (b"\xef\xbb\xbf{}", NoJobReason.NOT_JSON),
        (b"[]", NoJobReason.NO_USER),
        (b'["user"]', NoJobReason.NO_USER),
        (b'"user"', NoJobReason.NO_USER),
        (b'{"User": "bob"}', NoJobReason.NO_USER),
        (b'{"nested": {"user": "bob"}}', NoJobReason.NO_USER),
        (b'{"user": null}', NoJobReason.BAD_USER),
        (b'{"user": ["bob"]}', NoJobReason.BAD_USER),
        (b'{"user": 7}', NoJobReason.BAD_USER),
        (b'{"user": "bob", "user": "eve"}', NoJobReason.BAD_USER),
        (b'{"user": "bob", "\\u0075ser": "eve"}', NoJobReason.BAD_USER),
        (b'{"user": "bob", "user": "bob"}', NoJobReason.BAD_USER),
        (b"\x1f\x8b\x08\x00gzip", NoJobReason.BAD_ENCODING),
        ('{"user": "bob"}'.encode("utf-16"), NoJobReason.BAD_ENCODING),
        (b'{"user": "bob", "x": ' + b"[" * 100_000, NoJobReason.TOO_DEEP),
        (b'{"a":' * 50_000, NoJobReason.TOO_DEEP),
        (b" " * (LIMIT + 1), NoJobReason.TOO_LARGE),
        (b'{"user": ""}', NoJobReason.INVALID_NAME),
        (b'{"user": "1000"}', NoJobReason.INVALID_NAME),
        (b'{"user": "a\' OR user = \'b"}', NoJobReason.INVALID_NAME),
        (b'{"user": "bob\\n"}', NoJobReason.INVALID_NAME),
        (b'{"user": "\\ud800"}', NoJobReason.INVALID_NAME),
        ('{"user": "\u212aing"}'.encode(), NoJobReason.INVALID_NAME),
        (b'{"user": "' + b"a" * 200_000 + b'"}', NoJobReason.INVALID_NAME),
    ],
)
def test_a_body_that_is_no_job_says_why(body: bytes, reason: NoJobReason) -> None:
    assert reason_of(body) is reason


@pytest.mark.parametrize(
    "body",
    [
        b'{"user": "bob", "owner": {"user": "eve"}}',
        b'{"label": "user", "user": "bob"}',
        b'{"\\u0075ser": "bob"}',
        b'{"user": "b\\u006fb"}',
        b'{"user": "bob", "n": ' + b"9" * 200_000 + b"}",
        b'{"user": "bob", "n": -1e999999, "m": NaN}',
        b'{"user": "bob", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
    ],
)
def test_what_else_stands_in_a_job_is_not_ours_to_judge(body: bytes) -> None:
    assert read_job(body, LIMIT) == Job("bob")
