"""What systemd is told (sd_notify(3)): ready, stopping, a line of status, and that the loop still turns."""

import contextlib
import os
import socket
from typing import Final

MAX_STATUS: Final = 1000
"""Characters of a reason; it stands beside others in one screen."""


class Notify:
    """Datagrams to ``$NOTIFY_SOCKET``; without one, nothing. Sending never blocks."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog = int(microseconds) / 1e6 if microseconds.isdecimal() and for_us else 0.0
        """Seconds within which ``alive`` is expected, 0 for never."""

    def ready(self) -> None:
        """Say that the start is over."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._send("STOPPING=1")

    def alive(self, status: str) -> None:
        """Say that the loop turns, and what it is at."""
        self._send(f"WATCHDOG=1\nSTATUS={status}")

    def failed(self, why: str) -> None:
        """Say why it ends: of a line that a process wrote as its last journald often does not know whose it was."""
        self._send(f"STATUS={why[:MAX_STATUS]}")

    def close(self) -> None:
        """Say nothing any more."""
        self._socket.close()

    def _send(self, text: str) -> None:
        if self._address:
            with contextlib.suppress(OSError):
                self._socket.sendto(text.encode("ascii", "backslashreplace"), self._address)
