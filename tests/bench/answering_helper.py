"""Stands in for the root helper where thousands of users are to be known: each of them has an executor, it says.

What it leaves out: every start, every process, every notice. So a figure taken with it is the listener's and the
broker's alone. It answers as the protocol says and keeps who was asked for, so that a listener that connects again is
told of all of them, in pages.
"""

import json
import os
import threading
from bisect import bisect_right, insort
from typing import Any

import zmq

from tests.bench.instruments import ids_of
from tests.lab.accounts import LISTENER
from tests.lab.site import Site

_PAGE = 20  # entries, which fit a reply of 4,096 bytes


class AnsweringHelper:
    """The stand-in, on the installation's socket, from now until ``close``."""

    def __init__(self, site: Site) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(f"ipc://{site.installation.socket}")
        os.chown(site.installation.socket, 0, ids_of(LISTENER)[1])
        site.installation.socket.chmod(0o660)
        self._users: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._ended.is_set():
            if self._socket.poll(100):
                peer, frame = self._socket.recv_multipart()
                asked = json.loads(frame)
                answer = self._running(asked["user"]) if asked["op"] == "ensure" else self._page(asked["after"])
                self._socket.send_multipart([peer, json.dumps({"v": 1, "id": asked["id"], **answer}).encode()])
        self._context.destroy(0)

    def _running(self, user: str) -> dict[str, Any]:
        at = bisect_right(self._users, user)
        if not at or self._users[at - 1] != user:
            insort(self._users, user)
        return {"result": "running", **_executor(user)}

    def _page(self, after: str) -> dict[str, Any]:
        first = bisect_right(self._users, after)
        users = self._users[first : first + _PAGE]
        following = users[-1] if first + _PAGE < len(self._users) else None
        entries = [{"user": user, **_executor(user)} for user in users]
        return {"result": "executors", "executors": entries, "next": following, "draining": False, "free": 100}


def _executor(user: str) -> dict[str, Any]:
    return {"os_user": user, "uid": 54321, "pid": 1, "since": 0.0, "cgroup": None}
