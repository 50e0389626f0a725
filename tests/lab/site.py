"""One whole site for a test: accounts, an installation on a vhost of its own, both daemons, KNIME Server's side.

Nothing is started until it is asked for. ``remove`` takes everything back, also after a failure half-way; only the
broker, which other sites share, goes on.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.lab.accounts import Accounts, SystemUsers, run_prefix
from tests.lab.broker_node import BrokerNode
from tests.lab.daemons import Daemon
from tests.lab.installation import Installation
from tests.simulated_knime.server import SimulatedServer

LAB: Final = Path("/var/lib")
"""Where sites are made: a directory that only root can write, unlike /tmp."""


class Site:
    """A site; ``helper`` and ``listener`` are started by ``start`` or one by one."""

    def __init__(self, broker: BrokerNode) -> None:
        self._undo = ExitStack()
        self.broker = broker
        self.vhost = broker.vhosts.take()
        self._undo.callback(broker.vhosts.give_back, self.vhost)
        self.installation = Installation(LAB / f"kpr-{self.vhost}", broker, self.vhost)
        self.accounts = Accounts(self.installation.homes, run_prefix())
        self.helper = Daemon(self.installation, "helper")
        self.listener = Daemon(self.installation, "listener")

    def create(self) -> None:
        """Make everything that does not run: accounts of the daemons, vhost, queue, directories, configuration."""
        system_users = SystemUsers()
        self._undo.callback(system_users.remove)
        system_users.create()
        self._undo.callback(self.installation.remove)
        self._undo.callback(self.accounts.remove)
        self._undo.callback(self.helper.stop)
        self._undo.callback(self.listener.stop)
        self.installation.create()
        self.server = SimulatedServer(self.broker.server.at(self.broker.port, self.vhost))
        self._undo.callback(self.server.close)

    def start(
        self,
        *,
        helper: Mapping[str, Mapping[str, object]] | None = None,
        listener: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """Start both daemons, with these changes of their configuration."""
        self.installation.write_helper_toml(**(helper or {}))
        self.installation.write_listener_toml(**(listener or {}))
        self.helper.start()
        self.listener.start()

    def remove(self) -> None:
        """End what runs and take everything back."""
        self._undo.close()
