"""What listeners tell each other: any bytes are a message or none; other versions' keys and kinds are passed over."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_listener.host_messages import (
    MAX_BYTES,
    PAGE,
    Beat,
    Hello,
    HostMessage,
    HostState,
    Users,
    UserState,
    decode,
    encode,
)

BOOT = "0123456789abcdef"
LONGEST = "u" * 32 + "@" + "d" * 64
NUMBERS = st.integers(0, 2**31)
USERS = st.dictionaries(
    st.from_regex(r"[a-z_][a-z0-9_-]{0,30}", fullmatch=True), st.sampled_from(UserState), min_size=1, max_size=20
)
CONTENTS = st.one_of(
    st.builds(Beat, st.sampled_from(HostState), NUMBERS, NUMBERS),
    st.just(Hello()),
    USERS.map(Users),
    st.builds(Users, USERS, NUMBERS, NUMBERS),
)


@given(content=CONTENTS, seq=st.integers(0, 2**53))
def test_what_is_encoded_is_decoded(content: Beat | Hello | Users, seq: int) -> None:
    message = HostMessage("host-1.example.org", BOOT, seq, content)
    assert decode(encode(message)) == message


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_message_or_none(body: bytes) -> None:
    assert decode(body) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(
    st.fixed_dictionaries(
        {
            "host": st.just("a") | JSON,
            "boot": st.just(BOOT) | JSON,
            "seq": NUMBERS | JSON,
            "kind": st.sampled_from(["beat", "user", "users", "hello"]) | JSON,
        },
        optional=dict.fromkeys(("state", "free", "wanted", "user", "users", "page", "pages"), JSON),
    )
)
def test_any_json_is_a_message_or_none(entries: dict[str, object]) -> None:
    decode(json.dumps(entries).encode())


def test_a_page_of_the_longest_names_fits() -> None:
    users = {f"{number:04}{LONGEST}"[:97]: UserState.STARTING for number in range(PAGE)}
    body = encode(HostMessage("h" * 64, BOOT, 2**53, Users(users, 2**31, 2**31)))
    assert len(body) <= MAX_BYTES


def changed(**entries: object) -> bytes:
    message = {"v": 1, "host": "a", "boot": BOOT, "seq": 1, "kind": "beat", "state": "up", "free": 2, "wanted": 0}
    return json.dumps(message | entries).encode()


def test_a_later_versions_keys_are_passed_over_and_its_kinds_and_states_are_no_message_here() -> None:
    assert decode(changed(v=2, load=0.5)) == HostMessage("a", BOOT, 1, Beat(HostState.UP, 2, 0))
    assert decode(changed(kind="weather")) is None
    assert decode(changed(state="asleep")) is None
    users = {"alice": "ready", "bob": "dreaming"}
    told = decode(changed(kind="users", users=users, page=None))
    assert told is not None
    assert told.content == Users({"alice": UserState.READY})


@pytest.mark.parametrize(
    "body",
    [
        changed(host="a" * 65),
        changed(host="a/b"),
        changed(host="a\nb"),
        changed(boot="x" * 16),
        changed(seq=-1),
        changed(seq=True),
        changed(seq=1.0),
        changed(free=-1),
        changed(free=2**40),
        changed(kind="users", users={f"u{number}": "ready" for number in range(PAGE + 1)}, page=0, pages=1),
        changed(kind="users", users=[], page=0, pages=1),
        changed(kind="users", users={}, page=-1, pages=1),
        changed() + b" " * MAX_BYTES,
        b"[" * 30_000,
        b"[]",
    ],
)
def test_what_is_out_of_bounds_is_no_message(body: bytes) -> None:
    assert decode(body) is None


def test_a_name_outside_the_grammar_is_nobody() -> None:
    told = decode(changed(kind="user", user="a' OR user = 'b", state="ready"))
    assert told is not None
    assert told.content == Users({})
