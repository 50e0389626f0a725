"""The one grammar of a user name, for both sides.

A name that matches is pasted into KNIME's boolean reservation rule, into file names and into a unit's name, so
everything that could mean something there (quotes, blanks, operators, slashes, a leading dash or dot, digits alone,
anything beyond ASCII) is refused. Nothing is ever escaped or repaired: KELVIN SIGN (U+212A) lower-cases to ``k``.
"""

import re
from typing import Final, NewType

UserName = NewType("UserName", str)
"""A user name that was matched against the grammar."""

_NAME: Final = r"(?=[0-9._-]*[A-Za-z_])[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9_])){0,31}"
_DOMAIN: Final = r"(?=.{1,64}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]|\.(?=[A-Za-z0-9]))*"

_PLAIN: Final = re.compile(_NAME, re.ASCII)
_QUALIFIED: Final = re.compile(f"{_NAME}(?:@{_DOMAIN})?", re.ASCII)


def parse_user_name(text: str, *, qualified: bool = False) -> UserName | None:
    """Give the text back as a user name, or None where it is none.

    With ``qualified``, ``user@domain`` is a name too, as SSSD's ``use_fully_qualified_names`` has it (sssd.conf(5)).
    """
    grammar = _QUALIFIED if qualified else _PLAIN
    return UserName(text) if grammar.fullmatch(text) else None
