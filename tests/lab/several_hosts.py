"""Several hosts of one site on one machine: each has both daemons, an installation and a network of its own.

Users and their homes are shared, as a directory service and a file server share them. The broker is reached from each
host over a way that can be cut. A host can be killed whole: daemons, executors, connections.
"""

import json
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from tests.lab.accounts import Accounts, OsUser, SystemUsers, run_prefix
from tests.lab.broker_node import BrokerNode
from tests.lab.daemons import Daemon
from tests.lab.installation import Installation
from tests.lab.network import IsolatedNetwork, entered
from tests.lab.processes import ProcessId, end, processes_of, wait_for
from tests.lab.site import LAB
from tests.simulated_knime.server import SimulatedServer

HEARTBEAT: Final = 0.5
DEAD_AFTER: Final = 5.0


class Host:
    """One of the hosts. ``clock_ahead`` seconds is how far its listener's clocks are from the others'."""

    def __init__(self, name: str, installation: Installation, network: IsolatedNetwork, clock_ahead: int = 0) -> None:
        self.name, self.installation, self.network = name, installation, network
        self.helper = Daemon(installation, "helper")
        self.listener = Daemon(installation, "listener")
        if clock_ahead:
            ahead = ["unshare", "--time", "--monotonic", str(clock_ahead), "--boottime", str(clock_ahead), "--"]
            self.listener.prefix = ahead

    def start(self) -> None:
        """Start both daemons in the host's network."""
        with entered(self.network.path):
            self.helper.start()
            self.listener.start()

    def restart_listener(self) -> None:
        """Stop and start the listener, as an upgrade does."""
        self.listener.stop()
        with entered(self.network.path):
            self.listener.start()

    def kill(self, users: Sequence[OsUser]) -> None:
        """End the host at once, with all that runs on it."""
        self.network.cut()
        self.listener.kill()
        self.helper.kill()
        for process in self.executors(users):
            end(process, grace=0.0)

    def executors(self, users: Sequence[OsUser]) -> list[ProcessId]:
        """Give the users' processes on this host: those in its network."""
        inside = self.network.path.stat().st_ino
        return [process for process in processes_of([user.uid for user in users]) if _network_of(process) == inside]

    def status(self) -> dict[str, Any]:
        """Give what the listener says of itself."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(self.installation.status_socket))
            told: dict[str, Any] = json.loads(b"".join(iter(lambda: asked.recv(1 << 16), b"")))
        return told

    def operator(self, op: str, **fields: object) -> dict[str, Any]:
        """Ask the helper on the operators' socket, as root; give its reply."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(30.0)
            connection.connect(str(self.installation.operator_socket))
            connection.send(json.dumps({"v": 1, "id": "test", "op": op, **fields}).encode())
            return dict(json.loads(connection.recv(8192)))

    def starts(self, user: OsUser) -> int:
        """Count the user's executors that this host's helper has started so far."""
        text = self.installation.audit_log.read_text("ascii") if self.installation.audit_log.exists() else ""
        records = map(json.loads, text.splitlines())
        return sum(record["event"] == "started" and record["user"] == user.name for record in records)


class SeveralHosts:
    """The hosts, named ``a``, ``b`` and so on; ``remove`` takes everything back."""

    def __init__(self, broker: BrokerNode, count: int = 3, clocks_ahead: Mapping[int, int] | None = None) -> None:
        self._undo = ExitStack()
        self.broker = broker
        self.vhost = broker.vhosts.take()
        self._undo.callback(broker.vhosts.give_back, self.vhost)
        prefix = run_prefix()
        names = [chr(ord("a") + number) for number in range(count)]
        self.hosts = [
            Host(
                name,
                Installation(LAB / f"kpr-{self.vhost}-{name}", broker, self.vhost),
                IsolatedNetwork(f"{prefix}{name}", broker.port),
                (clocks_ahead or {}).get(number, 0),
            )
            for number, name in enumerate(names)
        ]
        self.accounts = Accounts(self.hosts[0].installation.homes, prefix)
        self.users: list[OsUser] = []

    def create(self) -> None:
        """Make everything that does not run."""
        system_users = SystemUsers()
        self._undo.callback(system_users.remove)
        system_users.create()
        for host in self.hosts:
            self._undo.callback(host.installation.remove)
            host.installation.create()
            self._undo.callback(host.network.remove)
            host.network.create()
        self._undo.callback(self.accounts.remove)
        for host in self.hosts:
            self._undo.callback(host.helper.stop)
            self._undo.callback(host.listener.stop)
        self.server = SimulatedServer(self.broker.server.at(self.broker.port, self.vhost))
        self._undo.callback(self.server.close)

    def remove(self) -> None:
        """End what runs and take everything back."""
        self._undo.close()

    def start(
        self,
        executors_per_user: object = "all",
        *,
        cluster: bool = True,
        wait: bool = True,
        helper: Mapping[str, Mapping[str, object]] | None = None,
        knime: Mapping[str, object] | None = None,
    ) -> None:
        """Start all hosts, and wait until each has heard of all, unless ``wait`` is False."""
        for host in self.hosts:
            tables = {"users": {"home_roots": [str(self.accounts.homes)]}, **(helper or {})}
            host.installation.write_helper_toml(**tables)
            table = {"enabled": cluster, "host": host.name, "executors_per_user": executors_per_user}
            times = {"heartbeat": HEARTBEAT, "dead_after": DEAD_AFTER}
            host.installation.write_listener_toml(cluster={**table, **times})
            host.installation.configure_knime(**(knime or {}))
            host.start()
        if cluster and wait:
            self.wait_until_they_know_each_other()

    def wait_until_they_know_each_other(self) -> None:
        """Wait until each host knows that each other takes executors."""
        wait_for(lambda: all(len(up(host)) == len(self.hosts) for host in self.hosts), 20, "hosts that know each other")

    def user(self, name: str) -> OsUser:
        """Make a user who has never logged in."""
        user = self.accounts.user(name)
        self.users.append(user)
        return user

    def live(self, user: OsUser) -> Counter[str]:
        """Count the user's executors on each host."""
        return Counter({host.name: len(found) for host in self.hosts if (found := host.executors([user]))})

    def wait_for_executors(self, user: OsUser, count: int, seconds: float = 40.0) -> None:
        """Wait until so many hosts run the user's executor."""
        wait_for(lambda: len(self.live(user)) == count, seconds, f"{count} executors of {user.name}")


def up(host: Host) -> list[str]:
    """Give the hosts that take executors, as one of them sees it."""
    hosts = host.status()["cluster"]["hosts"]
    return [one["host"] for one in hosts if one["state"] == "up" and one["free"] > 0]


def _network_of(process: ProcessId) -> int:
    try:
        return os.stat(f"/proc/{process.pid}/ns/net").st_ino  # noqa: PTH116 - what the link leads to
    except OSError:
        return 0
