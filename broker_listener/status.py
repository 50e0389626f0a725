"""What the listener says of itself on its Unix socket: one JSON document for each connection, and nothing is read.

Whoever may connect is told; who may, is the socket's mode to say: its owner, root, and members of ``knime-operators``.
The peer's credentials are looked at besides (unix(7)). A document of thousands of users is made and written in pieces,
so that hand-overs go on between them. A socket that cannot be had is a warning: no job depends on it.
"""

import asyncio
import contextlib
import errno
import grp
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from broker_listener import VERSION
from broker_listener.broker_connections import ConnectionState
from broker_listener.cluster import ClusterView
from broker_listener.config import ListenerConfig
from broker_listener.host_fault import HostFault
from broker_listener.local_clients import LocalClients
from broker_listener.snapshot import Snapshot
from broker_listener.user import User

LOG: Final = logging.getLogger(__name__)
OPERATORS: Final = "knime-operators"
USERS_AT_ONCE: Final = 100
"""Users whose part of the document is made in one turn of the loop, about half a millisecond's work."""
MAX_TEXT: Final = 500
_SO_PEERGROUPS: Final = getattr(socket, "SO_PEERGROUPS", 59)
_GROUPS_SIZE: Final = 1024
"""Bytes that socket.getsockopt gives at most: 256 groups."""


class StatusSocket:
    """The socket; ``look`` gives what is told."""

    def __init__(self, config: ListenerConfig, look: Callable[[], Snapshot]) -> None:
        self._config = config
        self._look = look
        self._since = time.time()
        self._path = Path(os.environ.get("RUNTIME_DIRECTORY", _DIRECTORY).partition(":")[0]) / "status.sock"
        self._clients: LocalClients | None = None

    def start(self) -> None:
        """Listen, if that is possible; call it in the loop."""
        try:
            self._clients = LocalClients("status", _bound(self._path), self._answer)
        except OSError as error:
            LOG.warning("event=status_not_served socket=%s reason=%r", self._path, error.strerror or str(error))
            return
        # NSS may take its time, and nothing waits for it: until then root and our own account may ask.
        threading.Thread(target=_open_to_operators, args=(self._path,), name="group", daemon=True).start()

    def close(self) -> None:
        """Listen no more, and leave no socket behind."""
        if self._clients is not None:
            self._clients.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    async def _answer(self, client: socket.socket) -> None:
        if not _may_ask(client, self._path):
            return
        for piece in self._pieces():
            await asyncio.get_running_loop().sock_sendall(client, piece)
            await asyncio.sleep(0)

    def _pieces(self) -> Iterator[bytes]:
        snapshot, clock = self._look(), time.time() - time.monotonic()
        head = _json(self._head(snapshot, clock)).removesuffix(b"}")
        yield head + b',"users":['
        names = sorted(snapshot.users)
        for first in range(0, len(names), USERS_AT_ONCE):
            users = [snapshot.users.get(name) for name in names[first : first + USERS_AT_ONCE]]
            told = b",".join(_json(_of_user(user, clock)) for user in users if user is not None)
            yield b"," + told if first and told else told
        yield b'],"cluster":'
        yield from _of_cluster(snapshot.cluster, clock) if snapshot.cluster is not None else (b"null",)
        yield b"}\n"

    def _head(self, snapshot: Snapshot, clock: float) -> dict[str, object]:
        broker, settlement, helper = self._config.broker, snapshot.settlement, snapshot.helper
        counters = settlement.counters
        return {
            "v": 1,
            "host": socket.gethostname(),
            "version": VERSION,
            "pid": os.getpid(),
            "since": self._since,
            "connections": {name: _of_connection(one, clock) for name, one in snapshot.connections.items()},
            "consuming": snapshot.consuming,
            "queue": broker.queue,
            "parked_queue": broker.parked_queue,
            "mode": self._config.hand_over.mode,
            "helper": {
                "state": "up" if helper.up else "down",
                "since": helper.since + clock,
                "draining": helper.draining,
                "free": helper.free,
            },
            "host_faults": [_of_fault(fault, clock) for fault in snapshot.host_faults],
            "held": {
                "jobs": settlement.deliveries,
                "bytes": settlement.bytes,
                "not_parked": settlement.not_parked,
            },
            "under_way": settlement.under_way,
            "totals": {
                "received": counters.received,
                "handed_over": counters.handed_over,
                "returned": counters.returned,
                "parked": counters.parked,
            },
        }


def _of_cluster(cluster: ClusterView, clock: float) -> Iterator[bytes]:
    """Give the hosts, and whose executors they have: each as user, host and state."""
    hosts = [
        {
            "host": host.host,
            "state": host.state,
            "free": host.free,
            "executors_per_user": _or_all(host.executors_per_user),
            "heard": host.heard_at + clock if host.heard_at is not None else None,
        }
        for host in cluster.hosts
    ]
    table = {"host": cluster.host, "executors_per_user": _or_all(cluster.executors_per_user), "hosts": hosts}
    counts = {"namesakes": cluster.namesakes, "ignored": cluster.ignored}
    yield _json({**table, **counts}).removesuffix(b"}") + b',"executors":['
    executors = sorted(cluster.executors())
    for first in range(0, len(executors), USERS_AT_ONCE):
        told = b",".join(map(_json, executors[first : first + USERS_AT_ONCE]))
        yield b"," + told if first else told
    yield b"]}"


def _or_all(executors_per_user: int | None) -> int | str | None:
    return "all" if executors_per_user == 0 else executors_per_user


def _of_connection(connection: ConnectionState, clock: float) -> dict[str, object]:
    return {
        "state": connection.state,
        "server": connection.server,
        "since": connection.since + clock,
        "why": connection.why[:MAX_TEXT] if connection.why else None,
    }


def _of_fault(fault: HostFault, clock: float) -> dict[str, object]:
    return {"reason": fault.reason, "since": fault.since + clock, "users": fault.users}


def _of_user(user: User, clock: float) -> dict[str, object]:
    return {
        "user": user.name,
        "state": user.state.name.lower(),
        "since": user.changed_at + clock,
        "held": len(user.held) + user.surplus,
        "jobs": user.jobs,
        "handed_over": user.handed_over,
        "returned": user.returns,
        "parked": user.parked,
        "reason": user.reason,
        "blame": user.starts.blame,
        "pid": user.executor.pid if user.executor is not None else None,
    }


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _bound(path: Path) -> socket.socket:
    """Give a socket that is bound there, open to our own account and root; raises OSError where one is in use."""
    if _is_in_use(path):
        raise OSError("somebody listens there already")
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening


def _is_in_use(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except BlockingIOError:  # a full backlog is somebody's
            return True
        except OSError:
            return False
    return True


def _open_to_operators(path: Path) -> None:
    """Give the socket to the group; under the unit it is the group's already, which may change no owners."""
    try:
        gid = grp.getgrnam(OPERATORS).gr_gid
        if path.stat().st_gid != gid:
            os.chown(path, -1, gid)
        path.chmod(0o660)
    except KeyError:
        LOG.warning("event=status_for_root_alone socket=%s reason='there is no group %s'", path, OPERATORS)
    except OSError as error:
        LOG.warning("event=status_for_root_alone socket=%s group=%s reason=%r", path, OPERATORS, error.strerror)


def _may_ask(peer: socket.socket, path: Path) -> bool:
    """Say what the mode says, of the peer as the kernel knows it (SO_PEERCRED, SO_PEERGROUPS)."""
    _, uid, gid = struct.unpack("=iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid in (0, os.geteuid()):
        return True
    status = path.stat()
    if status.st_gid == gid:
        return True
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError as error:  # more groups than fit: then the mode, which let it connect, stands alone
        return error.errno == errno.ERANGE
    return status.st_gid in {group for (group,) in struct.iter_unpack("=I", raw)}


_DIRECTORY: Final = "/run/knime-peruser-listener"
