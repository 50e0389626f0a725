"""Vhosts of one broker for the tests of a run: several are made and deleted at a time.

Each call of rabbitmqctl starts an Erlang VM, a second or more of a core, which was a third of all that the tests
computed.
"""

import secrets
from collections.abc import Iterable
from typing import Final, Protocol

_AT_A_TIME: Final = 8


class Broker(Protocol):
    """A node or a cluster."""

    def add_vhosts(self, names: Iterable[str]) -> None:
        """Make vhosts, empty, with the permissions of all accounts."""

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl``."""


class Vhosts:
    """The vhosts that are ready to be taken, and those that were given back and wait to be deleted."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._ready: list[str] = []
        self._used: list[str] = []

    def take(self) -> str:
        """Return the name of an empty vhost that nobody else uses; the broker must be running."""
        if not self._ready:
            self._delete_used()
            made = [f"site-{secrets.token_hex(4)}" for _ in range(_AT_A_TIME)]
            self._broker.add_vhosts(made)
            self._ready = made
        return self._ready.pop()

    def give_back(self, name: str) -> None:
        """Have a vhost deleted, with all that is in it, when the next ones are made."""
        self._used.append(name)

    def _delete_used(self) -> None:
        if self._used:
            calls = ", ".join(f'rabbit_vhost:delete(<<"{name}">>, <<"lab">>)' for name in self._used)
            self._broker.ctl("eval", f"{calls}.")
            self._used.clear()
