"""Anchors of the audit log: numbers and hashes of records that the helper told the journal while it ran.

They prove what a chain alone cannot, but only where they were kept: forwarded off the host. The text that holds them
is an operator's choice; a line that is none is passed over.
"""

import re
from collections.abc import Iterable
from typing import Final

MAX_LINE: Final = 65_536
Anchor = tuple[int, str]
"""The number of a record, and its hash."""


def anchors_in(lines: Iterable[bytes]) -> list[Anchor]:
    """Give the anchors of a journal's text, of whatever form its lines have."""
    found = (_ANCHOR.search(line[:MAX_LINE]) for line in lines)
    return [(int(match[1]), match[2].decode()) for match in found if match and int(match[1]) > 0]


_ANCHOR: Final = re.compile(rb"\baudit-anchor ([0-9]{1,19}) ([0-9a-f]{64})\b")
