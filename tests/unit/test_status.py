"""The listener's status socket: what its document holds, and that nobody who reads it holds anything up."""

import asyncio
import json
import os
import socket
import stat
import time
import tomllib
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from broker_listener import VERSION, local_clients, status
from broker_listener.cluster import ClusterView, HostView
from broker_listener.config import BrokerConfig, HandOverConfig, ListenerConfig
from broker_listener.consuming import Delivery
from broker_listener.hand_over import Machine
from broker_listener.host_messages import HostState, UserState
from broker_listener.local_clients import MAX_CLIENTS
from broker_listener.service import Service
from broker_listener.status import StatusSocket
from protocol import messages as m

pytestmark = pytest.mark.library

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return tmp_path / "status.sock"


def serving(machine: Machine, use: Callable[[], Awaitable[None]], cluster: ClusterView | None = None) -> None:
    """Serve what the machine knows while ``use`` runs."""

    async def check() -> None:
        service = Service(ListenerConfig())
        look = service._look()._replace(settlement=machine.settlement, users=machine.users, cluster=cluster)
        served = StatusSocket(ListenerConfig(), lambda: look)
        served.start()
        try:
            await use()
        finally:
            served.close()
            await service._stop()

    asyncio.run(check())


async def true(condition: Callable[[], object]) -> None:
    """Wait until it is true, for at most 10 s."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for is another thread's, or the kernel's
            await asyncio.sleep(0.005)


async def document(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=2**24)
    whole = await reader.read(-1)
    writer.close()
    return whole


def machine_with(users: int) -> Machine:
    machine = Machine(BrokerConfig(), HandOverConfig())
    for number in range(users):
        delivery = Delivery(1, number + 1, b"{}", b"\0\0", redelivered=False, exchange="", routing_key="")
        machine.job(f"u{number}", delivery, b"%d" % number, time.monotonic())
    machine.take_actions(time.monotonic())
    return machine


def test_the_document_is_one_line_with_the_keys_that_operators_rely_on(path: Path) -> None:
    machine = machine_with(1)
    machine.answered("u0", m.Started(m.RequestId("1"), "u0", 1000, 77, 0.0, None), 1, time.monotonic())

    async def use() -> None:
        whole = await document(path)
        assert whole.endswith(b"\n")
        assert whole.count(b"\n") == 1
        told = json.loads(whole)
        assert set(told["connections"].pop("consume")) == {"state", "server", "since", "why"}
        assert told["connections"]["publish"]["state"] == "down"
        (user,) = told.pop("users")
        assert abs(user.pop("since") - time.time()) < 60
        assert user == {
            "user": "u0",
            "state": "starting",
            "held": 1,
            "jobs": 0,
            "handed_over": 0,
            "returned": 0,
            "parked": 0,
            "reason": None,
            "blame": None,
            "pid": 77,
        }
        assert told.pop("helper")["draining"] is None
        assert abs(told.pop("since") - time.time()) < 60
        del told["connections"]
        assert told == {
            "v": 1,
            "host": socket.gethostname(),
            "version": VERSION,
            "pid": os.getpid(),
            "consuming": False,
            "queue": "knime-jobs",
            "parked_queue": "knime-jobs.parked",
            "mode": "republish",
            "host_faults": [],
            "held": {"jobs": 1, "bytes": 4, "not_parked": 0},
            "under_way": 0,
            "totals": {"received": 1, "handed_over": 0, "returned": 0, "parked": {}},
            "cluster": None,
        }

    serving(machine, use)


def test_the_version_is_the_project_s() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION


@pytest.mark.parametrize("users", [0, 1, status.USERS_AT_ONCE, 5000])
def test_all_users_are_told_in_order_whatever_their_number(path: Path, users: int) -> None:
    async def use() -> None:
        told = [user["user"] for user in json.loads(await document(path))["users"]]
        assert len(told) == users
        assert all(one < other for one, other in pairwise(told))

    serving(machine_with(users), use)


def test_who_does_not_read_holds_up_neither_the_loop_nor_others(path: Path) -> None:
    async def use() -> None:
        idle = [await asyncio.open_unix_connection(str(path), limit=1) for _ in range(MAX_CLIENTS - 1)]
        assert len(json.loads(await document(path))["users"]) == 5000
        for _, writer in idle:
            writer.transport.abort()

    serving(machine_with(5000), use)


def test_when_as_many_as_there_is_room_for_do_not_read_the_next_is_answered_once_their_time_is_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_clients, "SECONDS", 3.0)  # time enough for the one that reads, on a busy machine

    async def use() -> None:
        idle = [await asyncio.open_unix_connection(str(path), limit=1) for _ in range(MAX_CLIENTS)]
        assert json.loads(await document(path))["v"] == 1
        for reader, writer in idle:
            assert len(await reader.read(-1)) < 500_000  # was cut off
            writer.transport.abort()

    serving(machine_with(5000), use)


def test_a_socket_that_somebody_accepts_on_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(path))
    other.listen()

    async def use() -> None:
        await asyncio.sleep(0)

    serving(machine_with(0), use)
    assert "somebody listens there already" in caplog.text
    probe = socket.socket(socket.AF_UNIX)
    probe.connect(str(path))
    probe.close()
    other.close()


def test_a_socket_that_a_killed_listener_left_is_replaced(path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()

    async def use() -> None:
        assert json.loads(await document(path))["v"] == 1

    serving(machine_with(0), use)
    assert not path.exists()


def test_a_socket_that_cannot_be_made_is_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir()

    async def use() -> None:
        await asyncio.sleep(0)

    serving(machine_with(0), use)
    assert "event=status_not_served" in caplog.text


def test_without_the_group_it_is_open_to_its_owner_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(status, "OPERATORS", "no-such-group")

    async def use() -> None:
        await true(lambda: "event=status_for_root_alone" in caplog.text)
        await true(lambda: stat.S_IMODE(path.stat().st_mode) == 0o600)

    serving(machine_with(0), use)


def test_the_document_tells_of_the_other_hosts_and_whose_executors_they_have(path: Path) -> None:
    users = [(f"u{number:04}", "b", UserState.READY) for number in range(250)]
    hosts = (
        HostView("a", HostState.UP, 3, 0, None),
        HostView("b", HostState.DRAINING, 4, 2, time.monotonic()),
        HostView("c", HostState.UP, 0, None, time.monotonic()),
    )
    view = ClusterView("a", 0, hosts, 1, 2, lambda: iter(users))

    async def use() -> None:
        told = json.loads(await document(path))["cluster"]
        assert [told[key] for key in ("host", "executors_per_user", "namesakes", "ignored")] == ["a", "all", 1, 2]
        assert [host["executors_per_user"] for host in told["hosts"]] == ["all", 2, None]
        assert [(host["host"], host["state"], host["free"]) for host in told["hosts"]] == [
            *(("a", "up", 3), ("b", "draining", 4), ("c", "up", 0)),
        ]
        assert told["hosts"][0]["heard"] is None
        assert abs(told["hosts"][1]["heard"] - time.time()) < 60
        assert told["executors"] == [[user, host, "ready"] for user, host, _ in users]

    serving(machine_with(0), use, view)
