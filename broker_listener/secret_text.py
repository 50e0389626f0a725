"""A secret as a file of one line holds it. What editors and other systems add to it is taken off, or named.

Pure: whoever needs a secret reads the file. No text of an error holds anything of the secret.
"""

import codecs
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

MAX_BYTES: Final = 4096


class NotOneLineError(ValueError):
    """The content is no secret of one line; the text says why, and what to do."""


def one_line(content: bytes) -> str:
    """Return the secret without the ends of its line, LF or CR LF; "" if there is none.

    Raises:
        NotOneLineError: it cannot be what was meant.
    """
    if len(content) > MAX_BYTES:
        raise NotOneLineError(f"is longer than {MAX_BYTES} bytes; one line is expected")
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            raise NotOneLineError(f"begins with a byte order mark ({name}); save it as UTF-8 without one")
    try:
        line = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise NotOneLineError("is not UTF-8") from None
    if "\n" in line or "\r" in line:
        raise NotOneLineError("has more than one line; one is expected")
    if any(character < " " or character == "\x7f" for character in line.replace("\t", " ")):
        raise NotOneLineError("holds a control character")
    return line


def doubt(secret: str) -> str | None:
    """Return what in a secret was probably not meant, to be said where it is refused; None if nothing is."""
    if secret[:1].isspace():
        return "begins with a blank"
    if secret[-1:].isspace():
        return "ends with a blank"
    if not secret.replace("\t", " ").isprintable():
        return "holds a character that cannot be seen"
    return None


_MARKS: Final[Mapping[bytes, str]] = MappingProxyType(
    {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
)
