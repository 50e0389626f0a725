"""Whose messages count, and what becomes of the rest."""

import pytest

from broker_listener.host_exchange import EXPIRATION, HostExchange
from broker_listener.host_messages import Beat, Hello, HostMessage, HostState, encode
from broker_listener.properties import Properties, parse, short_lived

pytestmark = pytest.mark.library

MESSAGE = HostMessage("b", "0" * 16, 1, Beat(HostState.UP, 3, 0))


class Host:
    """Who talks to the others: notes what is told, or fails at it."""

    def __init__(self, *, fails: bool = False) -> None:
        self.messages: list[HostMessage] = []
        self._fails = fails

    def on_joined(self) -> None:
        raise AssertionError("nothing was connected")

    on_parted = on_joined

    def on_message(self, message: HostMessage) -> None:
        self.messages.append(message)
        if self._fails:
            raise RuntimeError("a bug")


def exchange(host: Host) -> HostExchange:
    return HostExchange("knime-peruser.hosts", "knime-peruser.hosts.a.0", lambda: "knime-listener", host)


def hear(there: HostExchange, body: bytes, properties: bytes) -> None:
    there._on_delivery(1, body, properties, False, "knime-peruser.hosts", "")


def test_a_message_is_transient_gone_after_a_while_and_from_our_account() -> None:
    properties = parse(short_lived("knime-listener", EXPIRATION))
    assert properties.fields["delivery_mode"] == b"\x01"
    assert properties.text("expiration") == b"15000"
    assert properties.text("user_id") == b"knime-listener"
    assert properties.headers is None


def test_only_what_the_broker_says_our_account_has_sent_is_heard() -> None:
    host = Host()
    there = exchange(host)
    for sender in (None, "knime-executors", "knime-listener "):
        fields = {} if sender is None else {"user_id": b"%c%b" % (len(sender), sender.encode())}
        hear(there, encode(MESSAGE), Properties(fields, None).encode())
    hear(there, encode(MESSAGE), b"\xff")
    assert (host.messages, there.ignored) == ([], 4)
    hear(there, encode(MESSAGE), short_lived("knime-listener", EXPIRATION))
    assert (host.messages, there.ignored) == ([MESSAGE], 4)


def test_what_is_no_message_is_counted_and_one_that_meets_a_bug_is_the_end_of_nothing() -> None:
    host = Host(fails=True)
    there = exchange(host)
    ours = short_lived("knime-listener", EXPIRATION)
    for body in (b"", b"{", b"[" * 100_000, b'{"v":2}', encode(MESSAGE) + b" " * 70_000):
        hear(there, body, ours)
    assert there.ignored == 5
    hear(there, encode(MESSAGE), ours)
    hear(there, encode(MESSAGE._replace(content=Hello())), ours)
    assert len(host.messages) == 2


def test_without_a_connection_nothing_is_taken_to_be_published() -> None:
    there = exchange(Host())
    assert not there.takes_more
    there.blocked(on=True)
    assert there.blocked_since is not None
    there.blocked(on=False)
    assert there.blocked_since is None
