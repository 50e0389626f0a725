"""The listener's side of the helper's ZeroMQ socket, for tests: pyzmq in a process of the listener's account.

The kernel notes who connects, so the process drops to the account first. It knows nothing of the protocol: it sends
the parts that it is given and gives what it receives, so that a test can send what no listener would.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.lab.accounts import LISTENER

_PROGRAM: Final = """
import os, sys, zmq
context = zmq.Context()
dealer = context.socket(zmq.DEALER)
dealer.linger = 0
dealer.connect("ipc://" + sys.argv[1])
poller = zmq.Poller()
poller.register(dealer, zmq.POLLIN)
poller.register(0, zmq.POLLIN)
os.write(1, b"\\n")
rest = b""
while True:
    for ready, _ in poller.poll():
        if ready is dealer:
            os.write(1, b"".join(dealer.recv_multipart()).hex().encode() + b"\\n")
            continue
        chunk = os.read(0, 65536)
        if not chunk:
            os._exit(0)
        *lines, rest = (rest + chunk).split(b"\\n")
        for line in lines:
            dealer.send_multipart([bytes.fromhex(part) for part in line.decode().split(",")])
"""


class ListenerClient:
    """A DEALER of the listener's account, or of another one. Notices are kept in ``notices``."""

    def __init__(self, path: Path, account: str = LISTENER, group: str = LISTENER) -> None:
        drop = ["setpriv", "--reuid", account, "--regid", group, "--clear-groups", "--"]
        self._process = subprocess.Popen(
            [*drop, sys.executable, "-I", "-c", _PROGRAM, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        self.notices: list[dict[str, Any]] = []
        self._replies: dict[str, dict[str, Any]] = {}
        self._buffer, self._is_up = b"", False
        if self._process.stdout is None or self._process.stdin is None:
            raise RuntimeError("no pipes")
        os.set_blocking(self._process.stdout.fileno(), False)
        self._from, self._to = self._process.stdout, self._process.stdin
        self._read_until(lambda: self._is_up, 30.0)

    @property
    def pid(self) -> int:
        """The process that is connected."""
        return self._process.pid

    def ensure(self, user: str, seconds: float = 30.0) -> dict[str, Any]:
        """Ask for a user's executor and wait for the answer."""
        return self.wait_for(self.send(op="ensure", user=user), seconds)

    def ask(self, op: str, seconds: float = 30.0, **fields: object) -> dict[str, Any]:
        """Ask anything and wait for the answer."""
        return self.wait_for(self.send(op=op, **fields), seconds)

    def executors(self) -> list[dict[str, Any]]:
        """Give what ``list`` gives, all pages."""
        found: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None:
            page = self.ask("list", after=after)
            found += page["executors"]
            after = page["next"]
        return found

    def send(self, **fields: object) -> str:
        """Send a request; give its id."""
        request = {"v": 1, "id": secrets.token_hex(8), **fields}
        self.send_parts(json.dumps(request).encode())
        return str(request["id"])

    def send_parts(self, *parts: bytes) -> None:
        """Send whatever the parts are."""
        self._to.write(",".join(part.hex() for part in parts).encode() + b"\n")
        self._to.flush()

    def wait_for(self, request_id: str, seconds: float = 30.0) -> dict[str, Any]:
        """Wait for the answer to a request.

        Raises:
            TimeoutError: it did not come.
        """
        self._read_until(lambda: request_id in self._replies, seconds)
        return self._replies.pop(request_id)

    def is_answered(self, request_id: str) -> bool:
        """Tell whether the answer is there, without waiting."""
        self._take_in()
        return request_id in self._replies

    def wait_for_notice(self, seconds: float = 30.0, **wanted: object) -> dict[str, Any]:
        """Wait for a notice with these values.

        Raises:
            TimeoutError: it did not come.
        """
        self._read_until(lambda: self._notice(wanted) is not None, seconds)
        notice = self._notice(wanted)
        assert notice is not None
        return notice

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self._to.close()
        self._process.kill()
        self._process.wait()
        self._from.close()

    def _notice(self, wanted: Mapping[str, object]) -> dict[str, Any] | None:
        return next((notice for notice in self.notices if wanted.items() <= notice.items()), None)

    def _read_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer within {seconds} s")
            time.sleep(0.002)
            self._take_in()

    def _take_in(self) -> None:
        try:
            chunk = os.read(self._from.fileno(), 1 << 20)
        except BlockingIOError:
            return
        self._is_up = True
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in filter(None, lines):
            message = json.loads(bytes.fromhex(line.decode()))
            if "notice" in message:
                self.notices.append(message)
            else:
                self._replies[message["id"]] = message
