"""Readiness against the kernel: real sockets on loopback, of uids and cgroups that are what they are."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker_listener import readiness, sockets
from broker_listener.readiness import Readiness

DEADLINE = 30.0


class Broker:
    """A listening port, on all addresses of both families, and connections to it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        self.port: int = self._listener.getsockname()[1]

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        client = self._stack.enter_context(socket.socket(family))
        client.connect((address, self.port))
        self._stack.enter_context(self._listener.accept()[0])
        return client


@pytest.fixture
def broker() -> Iterator[Broker]:
    with ExitStack() as stack:
        yield Broker(stack)


def inode(connection: socket.socket) -> int:
    return os.fstat(connection.fileno()).st_ino


Check = Callable[[Readiness, list[str]], Awaitable[None]]


def run(check: Check, ports: list[int], addresses: list[str] | None = None) -> None:
    async def within_deadline() -> None:
        ready: list[str] = []
        watcher = Readiness(ports, addresses or [], ready.append)
        try:
            async with asyncio.timeout(DEADLINE):
                await check(watcher, ready)
        finally:
            watcher.close()

    asyncio.run(within_deadline())


async def true(condition: Callable[[], bool]) -> None:
    """Wait until it is true; ``run`` has the deadline."""
    while not condition():  # noqa: ASYNC110 - what is waited for is the kernel's or a task's, neither sets an event
        await asyncio.sleep(0.01)


async def until(ready: list[str], users: list[str]) -> None:
    await true(lambda: sorted(ready) == users)


async def three_looks(watcher: Readiness) -> None:
    """Wait until the connections have been looked at three times more."""
    for _ in range(3):
        seen = watcher._snapshot_at
        await true(lambda seen=seen: watcher._snapshot_at != seen)


@pytest.mark.needs("root")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("reader", ["netlink", "tables"])
def test_a_connection_is_found_with_its_uid_inode_and_peer(broker: Broker, address: str, reader: str) -> None:
    connection = broker.connect(address)
    os.fchown(connection.fileno(), 4242, -1)
    read = sockets.established if reader == "netlink" else sockets.from_tables
    (found,) = read(frozenset({broker.port}))
    assert (found.uid, found.inode) == (4242, inode(connection))
    assert str(found.address) == ("::1" if address == "::1" else "127.0.0.1")


def test_sock_diag_and_proc_tell_the_same_of_many_connections(broker: Broker) -> None:
    for _ in range(300):
        broker.connect()
        broker.connect("::ffff:127.0.0.1")
    with_cgroup = sockets.established({broker.port})
    assert len(with_cgroup) == 600
    tables = set(sockets.from_tables(frozenset({broker.port})))
    assert {found._replace(cgroup=None) for found in with_cgroup} == tables


def test_sock_diag_tells_the_cgroup_of_the_process(broker: Broker) -> None:
    broker.connect()
    (found,) = sockets.established({broker.port})
    (path,) = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " cgroup2 " in line]
    directories = [directory for mount in mounts if (directory := Path(mount + path)).is_dir()]
    if not directories:
        pytest.skip("no cgroup2 hierarchy is mounted here")
    assert found.cgroup in {directory.stat().st_ino for directory in directories}


def test_where_netlink_is_refused_the_tables_are_read(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = broker.connect()
    monkeypatch.setattr(sockets, "_NETLINK_SOCK_DIAG", 31)
    assert [found.inode for found in sockets.established({broker.port})] == [inode(connection)]


def test_a_connection_of_the_executors_cgroup_makes_its_user_ready(broker: Broker) -> None:
    broker.connect()
    (found,) = sockets.established({broker.port})

    async def check(watcher: Readiness, ready: list[str]) -> None:
        watcher.watch("bob", os.getuid(), found.cgroup, frozenset({found.inode}), time.monotonic())
        await until(ready, ["bob"])

    run(check, [broker.port])


def test_a_connection_of_another_cgroup_of_the_same_uid_does_not_count(broker: Broker) -> None:
    broker.connect()
    (found,) = sockets.established({broker.port})
    if found.cgroup is None:
        pytest.skip("this kernel tells no cgroup of a socket")

    async def check(watcher: Readiness, ready: list[str]) -> None:
        watcher.watch("bob", os.getuid(), (found.cgroup or 0) + 1, frozenset(), time.monotonic())
        await three_looks(watcher)
        assert ready == []

    run(check, [broker.port])


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "::1"])
def test_without_a_cgroup_only_a_connection_that_is_new_counts(broker: Broker, address: str) -> None:
    old = broker.connect(address)

    async def check(watcher: Readiness, ready: list[str]) -> None:
        before = await watcher.sockets_now()
        assert before == {inode(old)}
        watcher.watch("bob", os.getuid(), None, before, time.monotonic())
        await three_looks(watcher)
        assert ready == []
        broker.connect(address)
        await until(ready, ["bob"])

    run(check, [broker.port])


def test_a_connection_of_another_uid_or_to_another_port_does_not_count(broker: Broker) -> None:
    other = broker.connect()
    os.fchown(other.fileno(), 4242, -1)

    async def check(watcher: Readiness, ready: list[str]) -> None:
        watcher.watch("bob", os.getuid(), None, frozenset(), time.monotonic())
        watcher.watch("eve", 4242, None, frozenset(), time.monotonic())
        await until(ready, ["eve"])
        await three_looks(watcher)
        assert ready == ["eve"]

    run(check, [broker.port])
    with ExitStack() as stack:
        Broker(stack).connect()

        async def elsewhere(watcher: Readiness, ready: list[str]) -> None:
            watcher.watch("bob", os.getuid(), None, frozenset(), time.monotonic())
            await three_looks(watcher)
            assert ready == []

        run(elsewhere, [broker.port])


def test_with_ready_addresses_only_connections_to_these_count(broker: Broker) -> None:
    broker.connect("::1")

    async def check(watcher: Readiness, ready: list[str]) -> None:
        watcher.watch("bob", os.getuid(), None, frozenset(), time.monotonic())
        await three_looks(watcher)
        assert ready == []
        broker.connect("::ffff:127.0.0.1")
        await until(ready, ["bob"])

    run(check, [broker.port], ["127.0.0.1"])


def test_a_listening_or_closed_socket_is_no_connection(broker: Broker) -> None:
    connection = broker.connect()
    assert len(sockets.established({broker.port})) == 1
    connection.close()
    deadline = time.monotonic() + DEADLINE
    while sockets.established({broker.port}):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_burst_of_starts_costs_one_snapshot(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []
    monkeypatch.setattr(readiness, "established", lambda ports: looks.append(ports) or ())

    async def check(watcher: Readiness, _ready: list[str]) -> None:
        await asyncio.gather(*(watcher.sockets_now() for _ in range(50)))

    run(check, [broker.port])
    assert len(looks) == 1


def test_nothing_is_read_while_nobody_is_watched(broker: Broker) -> None:
    broker.connect()

    async def check(watcher: Readiness, ready: list[str]) -> None:
        watcher.watch("bob", os.getuid(), None, frozenset(), time.monotonic())
        watcher.watch("eve", 4242, None, frozenset(), time.monotonic())
        await until(ready, ["bob"])
        watcher.unwatch("eve")
        await true(lambda: watcher._poll is None)
        watcher.watch("bob", os.getuid(), None, frozenset(), time.monotonic())
        await until(ready, ["bob", "bob"])

    run(check, [broker.port])


def test_a_kernel_that_answers_nothing_is_said_once_and_asked_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker.connect()
    read = sockets.established
    answers = iter([OSError("no"), OSError("no"), OSError("no")])

    def established(ports: frozenset[int]) -> tuple[sockets.BrokerSocket, ...]:
        if (error := next(answers, None)) is not None:
            raise error
        return read(ports)

    monkeypatch.setattr(readiness, "established", established)

    async def check(watcher: Readiness, ready: list[str]) -> None:
        watcher.watch("bob", os.getuid(), None, frozenset(), time.monotonic())
        await until(ready, ["bob"])

    run(check, [broker.port])
    assert caplog.text.count("readiness_failed") == 1


def test_a_bug_of_whoever_is_told_does_not_end_the_watching(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    broker.connect()

    async def check() -> None:
        told: list[str] = []

        def on_ready(user: str) -> None:
            told.append(user)
            if user == "bob":
                raise RuntimeError("bug")

        watcher = Readiness([broker.port], [], on_ready)
        watcher.watch("bob", os.getuid(), None, frozenset(), time.monotonic())
        watcher.watch("eve", os.getuid(), None, frozenset(), time.monotonic())
        async with asyncio.timeout(DEADLINE):
            await until(told, ["bob", "eve"])
        watcher.close()

    asyncio.run(check())
    assert "on_ready_failed user=bob" in caplog.text
