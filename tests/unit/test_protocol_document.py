"""protocol/PROTOCOL.md: its tables have the keys that the decoder wants, its examples are what the encoder writes."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from protocol import messages as m
from protocol.codec import NOTICES, REPLIES, REQUESTS, decode_reply, decode_request, encode_reply, encode_request

DOCUMENT = (Path(__file__).parents[2] / "protocol" / "PROTOCOL.md").read_text(encoding="utf-8")
TAGS = {"op": REQUESTS, "result": REPLIES, "notice": NOTICES}
MESSAGES = [(key, str(tag)) for key, kinds in TAGS.items() for tag in kinds]


def sections() -> dict[str, str]:
    """Give the text below each heading that names a message."""
    parts = re.split(r"^### `(\w+)`$", DOCUMENT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (re.split(r"^#", part, flags=re.MULTILINE)[0] for part in parts[2::2]), strict=True))


def rows(section: str, heading: str) -> list[str]:
    """Give the first cell of each row of the table with this first heading."""
    table = re.search(rf"^\| {heading} \|.*\n\|[ -|]+\n((?:\|.*\n)+)", section, re.MULTILINE)
    return re.findall(r"^\| `(\w+)` \|", table[1], re.MULTILINE) if table else []


def example(tag: str) -> bytes:
    """Give the one example of a message."""
    found = re.findall(r"```json\n(.*)\n```", sections()[tag])
    assert len(found) == 1, tag
    return str(found[0]).encode()


def test_every_message_has_a_section_and_every_section_is_a_message() -> None:
    assert list(sections()) == [tag for _, tag in MESSAGES]


@pytest.mark.parametrize(("key", "tag"), MESSAGES)
def test_a_table_has_exactly_the_keys_of_its_message(key: str, tag: str) -> None:
    names = {field.name for field in fields(TAGS[key][tag])}
    assert set(rows(sections()[tag], "key")) == {"v", key, *names}


@pytest.mark.parametrize("tag", [str(tag) for tag in REQUESTS])
def test_an_example_of_a_request_decodes_and_is_what_the_encoder_writes(tag: str) -> None:
    request = decode_request(example(tag))
    assert isinstance(request, REQUESTS[tag])
    assert encode_request(request) == example(tag)


@pytest.mark.parametrize("tag", [*REPLIES, *NOTICES])
def test_an_example_of_a_reply_or_notice_decodes_and_is_what_the_encoder_writes(tag: str) -> None:
    reply = decode_reply(example(tag))
    assert isinstance(reply, {**REPLIES, **NOTICES}[tag])
    assert encode_reply(reply) == example(tag)


def test_every_reason_is_explained_and_no_other() -> None:
    assert rows(sections()["refused"], "reason") == [reason.value for reason in m.RefusedReason]
    assert rows(sections()["failed"], "reason") == [reason.value for reason in m.FailedReason]


def test_the_limits_of_a_frame_are_the_decoders() -> None:
    assert f"at most {m.MAX_REQUEST:,} bytes, a reply or notice at most {m.MAX_REPLY:,}" in DOCUMENT
