"""A connection that is always wanted: without a broker, what is tried, said and waited."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from broker_listener import link
from broker_listener.limited_log import LimitedLog
from broker_listener.link import Link, Lost

URLS = ("amqp://k@one", "amqp://k@two", "amqp://k@three")


class Connection:
    frame_max = 4096
    closed = 0

    async def close(self) -> None:
        self.closed += 1


class Role:
    """Is ready at once, and lost when it is told."""

    name = "consume"

    def __init__(self) -> None:
        self.end: asyncio.Future[None] | None = None
        self.told: list[str] = []

    async def serve(self, _connection: Any, ready: Callable[[], None]) -> None:
        ready()
        self.told.append("served")
        self.end = asyncio.get_running_loop().create_future()
        await self.end

    def lost(self) -> None:
        self.told.append("lost")

    def blocked(self, *, on: bool) -> None:
        raise NotImplementedError(on)

    def stop(self) -> None:
        if self.end is not None and not self.end.done():
            self.end.set_result(None)


async def true(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30.0):
        while not condition():  # noqa: ASYNC110 - a task's state has no event
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PAUSE_MIN", 0.001)
    monkeypatch.setattr(link, "PAUSE_MAX", 0.004)


def test_every_url_is_tried_and_the_same_reason_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[str] = []

    async def refuse(url: Any, _role: Any) -> Any:
        tried.append(url.host)
        raise Lost("refused")

    async def check() -> None:
        wanted = Link(URLS, Role(), refuse)
        wanted.start()
        await true(lambda: len(tried) >= 30)
        assert (
            wanted.state == "down: one:5672: refused; three:5672: refused; two:5672: refused"
            or "connecting" in wanted.state
        )
        await wanted.close(1.0)
        assert wanted.state == "closed"

    asyncio.run(check())
    assert all(set(tried[at : at + 3]) == {"one", "two", "three"} for at in range(0, 30, 3))
    assert caplog.text.count("event=broker_down") == 1


@pytest.mark.parametrize("error", [Lost("the reason"), RuntimeError("a bug")])
def test_a_connection_that_is_lost_is_closed_said_and_made_anew(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    connections: list[Connection] = []

    async def connect(_url: Any, _role: Any) -> Connection:
        connections.append(Connection())
        return connections[-1]

    async def check() -> None:
        role = Role()
        wanted = Link(URLS, role, connect)
        wanted.start()
        for number in (1, 2):
            await true(lambda number=number: role.told.count("served") == number and wanted.up)
            assert wanted.frame_max == 4096
            assert role.end is not None
            role.end.set_exception(error)
        await true(lambda: role.told.count("served") == 3)
        await wanted.close(1.0)
        assert role.told == ["served", "lost"] * 3
        assert not wanted.up

    asyncio.run(check())
    assert [connection.closed for connection in connections] == [1, 1, 1]
    assert caplog.text.count("event=broker_down") == 2


def test_a_role_that_does_not_end_in_time_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def connect(_url: Any, _role: Any) -> Connection:
        return Connection()

    async def check() -> None:
        role = Role()
        role.stop = lambda: None  # type: ignore[method-assign]
        wanted = Link(URLS, role, connect)
        wanted.start()
        await true(lambda: wanted.up)
        await wanted.close(0.01)
        assert role.told == ["served", "lost"]

    asyncio.run(check())
    assert "broker_down" not in caplog.text


def test_lines_over_the_bound_are_counted_and_said_with_the_next_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr("broker_listener.limited_log.time.monotonic", lambda: now[0])
    limited = LimitedLog(link.LOG, lines=2)
    for number in range(7):
        limited.warning("line=%d", number)
    assert [record.getMessage() for record in caplog.records] == ["line=0", "line=1"]
    now[0] += 61.0
    limited.warning("line=%d", 7)
    assert [record.getMessage() for record in caplog.records[2:]] == ["lines_left_out=5", "line=7"]
