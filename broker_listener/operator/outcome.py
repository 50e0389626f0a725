"""How a command ends: the exit statuses that scripts rely on, and the exception that carries one of them.

A subcommand returns an ``Outcome``, or raises ``Stopped`` with what happened and what to do about it.
"""

from enum import IntEnum


class Outcome(IntEnum):
    """Exit statuses."""

    DONE = 0
    FINDING = 1
    """A fault was found, what was asked for is absent, or it was done in part."""
    USAGE = 2
    """Wrong usage, or the configuration cannot be used."""
    UNREACHABLE = 3
    """A daemon or the broker cannot be reached."""
    NOT_PERMITTED = 4


class Stopped(Exception):
    """The command cannot go on. The message is printed escaped: what is a stranger's in it needs no care."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome
