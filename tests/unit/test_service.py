"""What the loop tells systemd of the parts that it wires."""

import asyncio
import socket
from pathlib import Path

import pytest

from broker_listener.config import HelperConfig, ListenerConfig
from broker_listener.service import Service

pytestmark = pytest.mark.library


def test_the_status_says_at_once_that_the_helper_is_there_or_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(tmp_path / "notify"))
    systemd.settimeout(30)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

    async def check() -> None:
        service = Service(ListenerConfig(helper=HelperConfig(socket=str(tmp_path / "helper"))))
        service.on_listed({}, draining=False, free=7, asked=0)
        service.on_helper(True)
        assert systemd.recv(4096).decode() == (
            "WATCHDOG=1\nSTATUS=consume: connecting to 127.0.0.1:5672; publish: connecting to 127.0.0.1:5672; "
            "helper: up, draining=False free=7; jobs held: 0"
        )
        service.on_helper(False)
        assert b"helper: away" in systemd.recv(4096)
        await service._stop()

    asyncio.run(check())
    systemd.close()
