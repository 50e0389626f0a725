"""What 50 hosts and 5,000 users with an executor on each cost one listener: python3 -m tests.bench.host_messages.

The real decoding, views and placement, in one process without a broker; needs no root. It prints one table.
"""

import time
import tracemalloc
from collections.abc import Iterable

from broker_listener.host_messages import Beat, HostMessage, HostState, Users, UserState, decode, encode
from broker_listener.hosts import Hosts
from tests.bench.table import Rows

HOSTS, USERS = 50, 5000
HEARTBEAT, DEAD_AFTER = 5.0, 15.0


def main() -> None:
    """Measure, and print one table."""
    users = [f"user{number:05}" for number in range(USERS)]
    pages = [told_by(f"host{number:02}", users) for number in range(1, HOSTS)]
    beats = [body for told in pages for body in told if isinstance(content_of(body), Beat)]
    whole = [body for told in pages for body in told if isinstance(content_of(body), Users)]
    own = Hosts("host00", "0" * 16, None, DEAD_AFTER)
    own.joined(0.0)
    hear(own, beats)
    tracemalloc.start()
    hear(own, whole)
    memory = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    assert sum(own.placement.elsewhere(user) for user in users) == USERS
    again = hear(own, later(whole))
    cost = hear(own, later(beats))
    rows: Rows = [
        ("all that 49 hosts have, heard: bytes; memory", f"{sum(map(len, whole)) / 1e6:.1f} MB; {memory:.1f} MB", "-"),
        ("processor time for it, heard once more", f"{again:.2f} s", "-"),
        ("beats of 49 hosts, share of a core", f"{100 * cost / HEARTBEAT:.3f} %", "-"),
        ("one change of a user, heard: processor time", f"{1e6 * changes(own, users):.0f} us", "-"),
    ]
    print(f"{HOSTS} hosts, {USERS} users with an executor on each\n\n| what | seen | goal |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def told_by(name: str, users: Iterable[str]) -> list[bytes]:
    """Give what a host says when it has joined."""
    host = Hosts(name, f"{int(name[4:]):016x}", None, DEAD_AFTER)
    for user in users:
        host.own_user(user, UserState.READY, 0.0)
    host.own_users_known()
    host.joined(0.0)
    host.beat(HostState.UP, 100)
    return [encode(message) for message in host.take_messages(0.0)]


def hear(host: Hosts, bodies: Iterable[bytes]) -> float:
    """Give the processor time that these take."""
    began = time.process_time()
    for body in bodies:
        message = decode(body)
        assert message is not None
        host.heard(message, 1.0)
    return time.process_time() - began


def later(bodies: Iterable[bytes]) -> list[bytes]:
    """Give the same contents as said once more."""
    found = []
    for body in bodies:
        message = decode(body)
        assert message is not None
        found.append(encode(message._replace(seq=message.seq + 1000)))
    return found


def changes(host: Hosts, users: list[str]) -> float:
    """Give the processor time of a message that tells of one user."""
    bodies = [
        encode(HostMessage("host01", f"{1:016x}", 10_000 + number, Users({user: UserState.READY})))
        for number, user in enumerate(users)
    ]
    return hear(host, bodies) / len(bodies)


def content_of(body: bytes) -> object:
    message = decode(body)
    return None if message is None else message.content


if __name__ == "__main__":
    main()
