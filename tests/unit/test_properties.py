"""The raw property bytes: nothing is changed but what must be, and hostile bytes do nothing but raise BadProperties."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_listener import properties as p

pytestmark = pytest.mark.library

SHORT = st.binary(max_size=255).map(lambda text: bytes([len(text)]) + text)
NAMES = st.binary(max_size=20) | st.sampled_from([b"canHandle", b"CC", b"BCC", b"x-peruser-reason"])
LONG = st.tuples(st.sampled_from([b"S", b"x", b"F", b"A"]), st.binary(max_size=50)).map(
    lambda value: value[0] + struct.pack(">I", len(value[1])) + value[1]
)
FIXED = st.sampled_from(sorted(kind for kind, size in p._SIZES.items() if size)).flatmap(
    lambda kind: st.binary(min_size=p._SIZES[kind] - 1, max_size=p._SIZES[kind] - 1).map(
        lambda value: bytes([kind]) + value
    )
)
HEADERS = st.lists(st.tuples(NAMES, LONG | FIXED), max_size=6)
ROOM = 131052


def fields_of(size: int) -> st.SearchStrategy[bytes]:
    return SHORT if size == 0 else st.binary(min_size=size, max_size=size)


FIELDS = st.fixed_dictionaries({}, optional={name: fields_of(size) for name, _, size in p._LAYOUT if name != "headers"})
PROPERTIES = st.builds(p.Properties, FIELDS, st.none() | HEADERS)
RAW = PROPERTIES.map(p.Properties.encode)


def raw_of(headers: list[tuple[bytes, bytes]] | None = None, **fields: bytes) -> bytes:
    return p.Properties(fields, headers).encode()


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def text(value: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(value)) + value


def parked(raw: bytes, reason: str = "not_json", limit: int = ROOM, detail: str = "why") -> bytes:
    return p.parked(raw, reason, detail, "2026-11-25T01:02:03Z", "jobs", "new-work", limit)


def headers_of(raw: bytes) -> dict[bytes, bytes]:
    return dict(p.parse(raw).headers or ())


@given(PROPERTIES)
def test_what_was_walked_is_written_again_bit_for_bit(properties: p.Properties) -> None:
    assert p.parse(properties.encode()) == properties
    assert p.parse(properties.encode()).encode() == properties.encode()


@given(st.binary(max_size=400) | RAW.flatmap(lambda raw: st.integers(0, len(raw)).map(lambda cut: raw[:cut])))
def test_hostile_bytes_raise_nothing_but_bad_properties(raw: bytes) -> None:
    for read in (
        p.message_id,
        p.expiration,
        p.content_encoding,
        p.user_id,
        p.restored,
        lambda r: p.handed_over(r, "k"),
    ):
        try:
            read(raw)
        except p.BadProperties:
            continue
    assert p.parse(parked(raw))


@given(RAW, st.integers(2, 300), st.integers(0, 255))
def test_a_flipped_octet_raises_nothing_but_bad_properties(raw: bytes, at: int, octet: int) -> None:
    broken = raw[: at % len(raw)] + bytes([octet]) + raw[at % len(raw) + 1 :]
    try:
        assert p.parse(broken).encode() == broken
    except p.BadProperties:
        assert b"x-peruser-original-properties" in parked(broken)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0", b"\0\1", b"\0\2", b"\x20\0", b"\x20\0\xff\xff\xff\xff", b"\x80\0\5abc", b"\0\0left over", b"\0\x40\0"],
)
def test_properties_that_end_early_late_or_have_flags_that_do_not_exist_are_bad(raw: bytes) -> None:
    with pytest.raises(p.BadProperties):
        p.parse(raw)


def test_a_field_type_that_does_not_exist_is_bad() -> None:
    with pytest.raises(p.BadProperties):
        p.parse(raw_of([(b"h", b"Q1234")]))


def test_a_header_that_ends_behind_its_table_is_bad() -> None:
    entry = b"\1h" + text(b"abcd")
    with pytest.raises(p.BadProperties):
        p.parse(b"\x30\0" + struct.pack(">I", len(entry) - 1) + entry)


def test_a_table_nested_deeper_than_any_recursion_is_walked_by_its_length() -> None:
    deep = b""
    for _ in range(20000):
        deep = b"A" + struct.pack(">I", len(deep)) + deep
    raw = raw_of([(b"deep", deep)])
    assert headers_of(p.handed_over(raw, "knime"))[b"deep"] == deep


@given(PROPERTIES)
def test_handing_over_sets_can_handle_and_takes_off_cc_and_bcc_and_a_foreign_user_id_only(
    properties: p.Properties,
) -> None:
    after = p.parse(p.handed_over(properties.encode(), "knime"))
    assert after.headers is not None
    before = [entry for entry in properties.headers or () if entry[0] not in (b"CC", b"BCC")]
    others = [entry for entry in after.headers if entry[0] != b"canHandle"]
    assert others == [entry for entry in before if entry[0] != b"canHandle"]
    assert [name for name, _ in after.headers][: len(before)] == [name for name, _ in before]
    values = [value for name, value in after.headers if name == b"canHandle"]
    assert values == [b"t\x01"] * max(1, sum(name == b"canHandle" for name, _ in before))
    expected = dict(properties.fields)
    if expected.get("user_id") != short(b"knime"):
        expected.pop("user_id", None)
    assert after.fields == expected


@given(PROPERTIES)
def test_what_was_handed_over_is_known_by_its_bytes(properties: p.Properties) -> None:
    assert p.can_handle(p.handed_over(properties.encode(), "knime"))


def test_what_was_not_handed_over_is_not_taken_for_it() -> None:
    assert not p.can_handle(raw_of([(b"canHandle", b"t\0")]))
    assert not p.can_handle(raw_of([], type=b"\x09canHandle"))


@given(PROPERTIES)
def test_what_is_put_back_by_publishing_keeps_can_handle_as_it_came(properties: p.Properties) -> None:
    after = p.parse(p.put_back(properties.encode(), "knime"))
    assert after.headers == (
        None
        if properties.headers is None
        else [entry for entry in properties.headers if entry[0] not in (b"CC", b"BCC")]
    )
    assert after.fields == p.parse(p.handed_over(properties.encode(), "knime")).fields


def test_our_own_user_id_is_kept_when_a_job_is_handed_over() -> None:
    raw = raw_of(user_id=short(b"knime"))
    assert p.user_id(p.handed_over(raw, "knime")) == b"knime"
    assert p.user_id(p.handed_over(raw, "other")) is None


def test_the_values_that_libraries_change_are_handed_over_as_they_were() -> None:
    headers = [
        (b"d", b"d" + struct.pack(">d", 0.75)),
        (b"f", b"f" + struct.pack(">f", 0.5)),
        (b"b", b"b\xfb"),
        (b"s", b"s" + struct.pack(">h", 300)),
        (b"text", text(b"\xff\xfe not UTF-8")),
        (b"dup", b"t\0"),
        (b"dup", b"t\1"),
    ]
    raw = raw_of(headers, timestamp=struct.pack(">Q", 1_700_000_000_000))
    after = p.parse(p.handed_over(raw, "knime"))
    assert after.headers == [*headers, (b"canHandle", b"t\x01")]
    assert after.fields["timestamp"] == struct.pack(">Q", 1_700_000_000_000)


@given(PROPERTIES, st.text(max_size=100))
def test_a_parked_message_is_restored_but_for_its_user_id(properties: p.Properties, detail: str) -> None:
    headers = [entry for entry in properties.headers or [] if not entry[0].startswith(b"x-peruser-")]
    fields = {name: field for name, field in properties.fields.items() if name != "user_id"}
    restored = p.restored(parked(properties.encode(), detail=detail))
    assert restored == p.Properties(fields, headers or None).encode()


@given(RAW)
def test_a_parked_message_neither_expires_nor_travels_and_survives_a_restart(raw: bytes) -> None:
    after = p.parse(parked(raw))
    assert after.text("expiration") is after.text("user_id") is None
    assert after.fields["delivery_mode"] == b"\x02"
    assert not {b"CC", b"BCC"} & set(dict(after.headers or ()))


def test_a_parked_message_says_why_when_and_from_where() -> None:
    raw = raw_of(
        [(b"CC", b"A\0\0\0\0")], expiration=short(b"1500"), user_id=short(b"knime-server"), delivery_mode=b"\1"
    )
    headers = headers_of(parked(raw, detail="no user"))
    assert headers == {
        b"x-peruser-original-CC": b"A\0\0\0\0",
        b"x-peruser-original-expiration": text(b"1500"),
        b"x-peruser-original-user-id": text(b"knime-server"),
        b"x-peruser-original-delivery-mode": b"B\x01",
        b"x-peruser-reason": text(b"not_json"),
        b"x-peruser-parked-at": text(b"2026-11-25T01:02:03Z"),
        b"x-peruser-exchange": text(b"jobs"),
        b"x-peruser-routing-key": text(b"new-work"),
        b"x-peruser-detail": text(b"no user"),
    }


def test_headers_that_pretend_to_be_ours_are_dropped_when_a_message_is_parked() -> None:
    raw = raw_of([(b"x-peruser-original-CC", text(b"evil")), (b"x-peruser-reason", text(b"none")), (b"a", b"V")])
    after = parked(raw)
    assert b"evil" not in after
    assert headers_of(after)[b"x-peruser-reason"] == text(b"not_json")
    assert p.restored(after) == raw_of([(b"a", b"V")])


def test_properties_that_cannot_be_walked_are_kept_up_to_4_kib_and_not_restored() -> None:
    raw = b"\xff\xff" + b"z" * 9000
    after = parked(raw, "bad_properties")
    assert headers_of(after)[b"x-peruser-original-properties"] == b"x" + struct.pack(">I", 4096) + raw[:4096]
    with pytest.raises(p.BadProperties):
        p.restored(after)


@given(st.integers(0, 1200), st.integers(0, 600), RAW)
def test_what_is_parked_always_fits_the_frame(spare: int, detail: int, raw: bytes) -> None:
    limit = 3000
    big = p.parse(raw)
    padding = limit - spare - len(raw) - 20
    if padding > 0:
        big = p.Properties(big.fields, [*(big.headers or []), (b"pad", text(b"p" * padding))])
    after = parked(big.encode(), limit=limit, detail="d" * detail)
    assert len(after) <= limit
    assert headers_of(after)[b"x-peruser-reason"] == text(b"not_json")


def test_a_header_that_fits_only_without_ours_keeps_the_reason() -> None:
    raw = raw_of([(b"big", text(b"b" * (ROOM - 60)))], delivery_mode=b"\2")
    assert len(raw) > ROOM - 60
    after = parked(raw, limit=ROOM)
    assert headers_of(after)[b"big"] == headers_of(raw)[b"big"]
    assert set(headers_of(after)) == {b"big", b"x-peruser-reason"}


def test_names_that_are_no_utf_8_are_parked_escaped() -> None:
    after = p.parked(b"\0\0", "not_json", "d", "t", "jobs", b"\xff".decode("utf-8", "surrogateescape"), ROOM)
    assert headers_of(after)[b"x-peruser-routing-key"] == text(rb"\udcff")


@pytest.mark.parametrize("header", [b"expiration", b"delivery-mode"])
def test_a_forged_original_of_another_type_is_not_restored(header: bytes) -> None:
    with pytest.raises(p.BadProperties):
        p.restored(raw_of([(b"x-peruser-original-" + header, b"t\1")]))
