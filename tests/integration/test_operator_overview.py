"""``status --watch`` on a terminal: a real one of the kernel's, of a size, obeyed and left as it was found."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.lab.accounts import OsUser
from tests.lab.helper_under_test import HelperUnderTest, helper_under_test
from tests.lab.processes import PATH, wait_for

ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"
"""The other screen, which is gone with everything on it when it is left: xterm's control sequences."""


@pytest.fixture(scope="module")
def helper() -> Iterator[HelperUnderTest]:
    with helper_under_test() as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def alice(helper: HelperUnderTest) -> OsUser:
    user = helper.accounts.user("alice")
    helper.client().ask("ensure", user=user.name)
    return user


class Terminal:
    """A command at a terminal; ``text`` is all that it wrote."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master, self.process, self.text = master, process, ""

    def shows(self, count: int, words: str) -> bool:
        """Read what is there, and say whether these words were written so often."""
        self.read()
        return self.text.count(words) >= count

    def ended(self) -> bool:
        """Read what is there, and say whether the command ended before."""
        ended = self.process.poll() is not None
        self.read()
        return ended

    def read(self) -> None:
        """Read what is there."""
        os.set_blocking(self._master, False)
        with suppress(BlockingIOError, OSError):  # nothing yet; or nobody writes there any more
            while part := os.read(self._master, 1 << 16):
                self.text += part.decode("utf-8", "replace")


@contextmanager
def watching(helper: HelperUnderTest, columns: int, rows: int, **environment: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    socket = str(Path("/nonexistent/status.sock"))
    command = helper.installation.operator("status", "--watch", "--interval", "0.5", "--status-socket", socket)
    made = {"PATH": PATH, "LANG": "C.UTF-8", **environment}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=made, start_new_session=True)
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def interrupted(terminal: Terminal) -> int:
    """Do what Ctrl-C does; give the exit status, after the rest was read."""
    terminal.process.send_signal(signal.SIGINT)
    wait_for(terminal.ended, 20.0, "the end")
    return int(terminal.process.returncode)


def test_a_watched_page_is_drawn_anew_in_place_and_the_screen_is_given_back(
    helper: HelperUnderTest, alice: OsUser
) -> None:
    with watching(helper, 200, 24, TERM="xterm-256color") as terminal:
        wait_for(lambda: terminal.shows(3, alice.name), 30.0, "three pages")
        assert interrupted(terminal) == 3
    assert terminal.text.count(ENTERED) == terminal.text.count(LEFT) == 1
    assert terminal.text.index(ENTERED) < terminal.text.index(alice.name) < terminal.text.index(LEFT)


def test_without_colours_none_is_written(helper: HelperUnderTest, alice: OsUser) -> None:
    with watching(helper, 80, 24, TERM="xterm-256color", NO_COLOR="1") as terminal:
        wait_for(lambda: terminal.shows(2, alice.name), 30.0, "two pages")
    assert re.search(r"\x1b\[[0-9;]*3[0-7]", terminal.text) is None


def test_a_terminal_that_moves_no_cursor_gets_one_page_after_another(helper: HelperUnderTest, alice: OsUser) -> None:
    with watching(helper, 80, 24, TERM="dumb") as terminal:
        wait_for(lambda: terminal.shows(3, alice.name), 30.0, "three pages")
        assert interrupted(terminal) == 3
    assert "\x1b" not in terminal.text
