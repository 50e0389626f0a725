"""The page of metrics over HTTP, at ``metrics.listen``.

Everybody on the host can connect, each user's workflow too: what is sent is read up to the request's end and no
further, and the page is made anew at most once a second, whoever asks how often. What makes it is loaded when somebody
asks for the first time, in a thread, so that a host without Prometheus does without. A port that cannot be had is a
warning: no job depends on it.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from broker_listener.config import parse_listen
from broker_listener.limited_log import LimitedLog
from broker_listener.local_clients import LocalClients
from broker_listener.snapshot import Snapshot

if TYPE_CHECKING:
    from broker_listener.metrics import Metrics

LOG: Final = logging.getLogger(__name__)
FRESH: Final = 1.0
"""Seconds that a page serves."""
MAX_REQUEST: Final = 8192


class Exporter:
    """The endpoint; ``look`` gives what is told."""

    def __init__(self, look: Callable[[], Snapshot]) -> None:
        self._look = look
        self._since = time.time()
        self._metrics: Metrics | None = None
        self._page = b""
        self._made_at = float("-inf")
        self._clients: LocalClients | None = None
        self._limited = LimitedLog(LOG)

    def start(self, listen: str) -> None:
        """Listen at the address, if that is possible; call it in the loop."""
        address, port = parse_listen(listen)
        try:
            listening = socket.create_server(
                (str(address), port), family=socket.AF_INET if address.version == 4 else socket.AF_INET6
            )
        except OSError as error:
            LOG.warning("event=metrics_not_served listen=%s reason=%r", listen, error.strerror or str(error))
            return
        self._clients = LocalClients("metrics", listening, self._answer)

    def close(self) -> None:
        """Listen no more."""
        if self._clients is not None:
            self._clients.close()

    async def _answer(self, client: socket.socket) -> None:
        status = _status_of(await _request(client))
        if status == "200 OK" and not await self._loaded():
            status = "503 Service Unavailable"
        body = self._fresh_page() if status == "200 OK" else f"{status}\n".encode("ascii")
        head = f"HTTP/1.1 {status}\r\nContent-Type: {_TEXT}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(client, head.encode("ascii") + body)

    async def _loaded(self) -> bool:
        """Have what makes the page; say whether it is there."""
        if self._metrics is None:
            try:
                made = await asyncio.to_thread(_import)
            except ImportError as error:
                self._limited.warning("event=metrics_not_served reason=%r", str(error))
                return False
            self._metrics = made(self._look, self._since)
        return True

    def _fresh_page(self) -> bytes:
        now = time.monotonic()
        if self._metrics is not None and now - self._made_at >= FRESH:
            self._page, self._made_at = self._metrics.page(), now
        return self._page


def _import() -> "type[Metrics]":
    from broker_listener.metrics import Metrics  # noqa: PLC0415 - see above

    return Metrics


async def _request(client: socket.socket) -> bytes:
    """Give a request's head, or what came of it."""
    loop = asyncio.get_running_loop()
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MAX_REQUEST:
        more = await loop.sock_recv(client, MAX_REQUEST - len(head))
        if not more:
            break
        head += more
    return head


def _status_of(head: bytes) -> str:
    line, rest = head.partition(b"\r\n")[::2]
    method, _, target = line.rpartition(b" ")[0].partition(b" ")
    if b"\r\n\r\n" not in b"\r\n" + rest or not line.rpartition(b" ")[2].startswith(b"HTTP/1."):
        return "400 Bad Request"
    if target.partition(b"?")[0] != b"/metrics":
        return "404 Not Found"
    return "200 OK" if method == b"GET" else "405 Method Not Allowed"


_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
