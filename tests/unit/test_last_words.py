"""A daemon that cannot start tells the service manager why: journald may not know any more whose last line that was."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker_listener.__main__ import main as listener
from root_helper.__main__ import _leave

pytestmark = pytest.mark.library


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bytes]]:
    """Be the service manager: give a function that gives the next thing said."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield lambda: manager.recv(8192)


def test_the_listener_says_what_is_wrong_with_its_configuration(told: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "listener.toml").write_text("[broker]\nprefetch = 0\nqueue = 1\n", encoding="utf-8")
    assert listener(["--config", str(tmp_path / "listener.toml")]) == 2
    said = told().decode("ascii")
    assert said.startswith(f"STATUS={tmp_path}/listener.toml: broker.")
    assert "broker.prefetch" in said
    assert "broker.queue" in said


def test_the_helper_says_why_it_ends_and_no_more_than_fits(told: Callable[[], bytes]) -> None:
    with pytest.raises(SystemExit, match=r"^1$"):
        _leave(1, ["one thing", "another \u00e9", "x" * 5000])
    said = told()
    assert said.startswith(rb"STATUS=one thing; another \xe9; xxx")
    assert len(said) < 1100
    assert b"\n" not in said
