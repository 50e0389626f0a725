"""Bugs in the machine, which must end what they happen to and nothing else: the loop, its timer and its log go on."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from broker_listener.config import HelperConfig, ListenerConfig
from broker_listener.service import Service

pytestmark = pytest.mark.library


def running(tmp_path: Path, check: Callable[[Service], Awaitable[None]]) -> None:
    async def within_deadline() -> None:
        service = Service(ListenerConfig(helper=HelperConfig(socket=str(tmp_path / "helper"))))
        async with asyncio.timeout(20):
            await check(service)
        await service._stop()

    asyncio.run(within_deadline())


def test_a_bug_when_the_timer_rings_is_logged_and_it_rings_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(service: Service) -> None:
        rung = []

        def rings(now: float) -> None:
            rung.append(now)
            if len(rung) == 1:
                raise RuntimeError("bug")

        monkeypatch.setattr(service._machine, "time_passed", rings)
        monkeypatch.setattr(service._machine, "next_deadline", lambda: time.monotonic() + 0.01)
        service._soon()
        while len(rung) < 3:  # noqa: ASYNC110 - it has no event of its own
            await asyncio.sleep(0.001)

    running(tmp_path, check)
    assert caplog.text.count("event=time_passed_failed") == 1
    assert "RuntimeError: bug" in caplog.text
