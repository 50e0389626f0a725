"""Who was started before: the users whom the helper has named as started or running, those seen last first to be kept.

No other name gets in: what a publisher invents is not remembered. The text form is what the state file holds; what is
read back from it is checked like anybody's bytes, since it only decides who waits in front of whom. No I/O here.
"""

from collections.abc import Iterable
from typing import Final

from protocol.names import parse_user_name

MAX_NAMES: Final = 10_000
"""Far more than a host has executors; the longest names take 1 MB."""
MAX_SIZE: Final = 2**20
"""Bytes of the text form at most: the title, and ``MAX_NAMES`` names of 97 characters and a line end."""
TITLE: Final = "knime-peruser started-before 1"


class NotReadable(Exception):
    """Not a text form of ours; the message says why, without a byte of it."""


class StartedBefore:
    """A bounded set of names, oldest first."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = dict.fromkeys(names)
        self.changed = False
        """True if the text form is another than it was when this was set to False."""

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str) -> None:
        """Remember that the helper has started the user's executor."""
        self.changed |= name not in self._names
        self._names.pop(name, None)
        self._names[name] = None
        if len(self._names) > MAX_NAMES:
            del self._names[next(iter(self._names))]

    def remove(self, name: str) -> None:
        """Forget the user: the helper has refused an executor."""
        if name in self._names:
            del self._names[name]
            self.changed = True

    def text(self) -> str:
        """Return the text form, a name a line."""
        return "\n".join([TITLE, *self._names, ""])


def from_text(text: bytes) -> StartedBefore:
    """Return what the text form holds.

    Raises:
        NotReadable: it is damaged, or somebody else's.
    """
    if len(text) > MAX_SIZE:
        raise NotReadable(f"it is larger than {MAX_SIZE} bytes")
    try:
        title, *names, end = text.decode("ascii").split("\n")
    except ValueError:  # UnicodeDecodeError, too
        raise NotReadable("it is not text, or has no lines") from None
    if title != TITLE or end or len(names) > MAX_NAMES:
        raise NotReadable("its first line, its end or the number of its lines is wrong")
    if any(parse_user_name(name, qualified=True) is None for name in names):
        raise NotReadable("a line is no user name")
    return StartedBefore(names)
