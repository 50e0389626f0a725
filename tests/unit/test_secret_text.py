"""Secrets of one line: what is taken off, what is refused with its name, and that no text gives any of it away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_listener.secret_text import MAX_BYTES, NotOneLineError, doubt, one_line

SECRETS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda text: text[0] != "\ufeff")


@given(SECRETS, st.text("\r\n"))
def test_line_ends_are_no_part_of_a_secret(secret: str, ends: str) -> None:
    """Whichever system wrote the file, and however often its editor added one."""
    assert one_line((secret + ends).encode()) == secret


@given(st.binary(max_size=100))
def test_any_bytes_are_one_line_or_refused(content: bytes) -> None:
    """What is accepted is the content itself, but for its end; nothing else is ever raised."""
    try:
        secret = one_line(content)
    except NotOneLineError:
        return
    assert content.rstrip(b"\r\n") == secret.encode()
    assert "\n" not in secret


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xef\xbb\xbfhush", "begins with a byte order mark (UTF-8)"),
        ("hush".encode("utf-16"), "begins with a byte order mark (UTF-16)"),
        (b"\xfe\xff\0h", "begins with a byte order mark (UTF-16)"),
        (b"hush\xff", "is not UTF-8"),
        (b"hush\nmore\n", "has more than one line"),
        (b"hush\rmore", "has more than one line"),
        (b"\nhush", "has more than one line"),
        (b"hush\x00", "holds a control character"),
        (b"hu\x1bsh", "holds a control character"),
        (b"hush" * MAX_BYTES, "is longer than 4096 bytes"),
    ],
)
def test_what_cannot_be_meant_is_named_without_the_secret(content: bytes, why: str) -> None:
    with pytest.raises(NotOneLineError) as error:
        one_line(content)
    assert str(error.value).startswith(why)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (" hush", "begins with a blank"), ("\thush", "begins with a blank"), ("hush ", "ends with a blank"),
        ("hush\t", "ends with a blank"), ("hush\u00a0", "ends with a blank"), ("hu\u200bsh", "that cannot be seen"),
        ("p@ss w\u00f6rd", None), ("hush", None), ("", None), (" ", "begins with a blank"),
    ],
)  # fmt: skip
def test_what_may_not_be_meant_is_a_doubt(secret: str, said: str | None) -> None:
    """A password may end with a blank: it is used as it is, and named where it is refused."""
    found = doubt(secret)
    assert found is None if said is None else said in (found or "")
