"""A RabbitMQ node with its management interface, on loopback, and an account that may look at it."""

import json
from pathlib import Path
from typing import Final

from tests.lab.broker_node import BrokerNode, _free_ports, _password_hash

MONITOR: Final = "s3cret-of-the-monitor"
"""The password of the account ``monitor``."""


class ManagedBroker(BrokerNode):
    """The node; ``url`` is where the interface is asked."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (self.management_port,) = _free_ports(1)

    @property
    def url(self) -> str:
        """The interface, with the account."""
        return f"http://monitor@127.0.0.1:{self.management_port}"

    def create(self) -> None:
        """Write the files of a node with the plug-in, whose figures are two seconds old at most."""
        super().create()
        listen = f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.management_port}\n"
        listen += "collect_statistics_interval = 500\n"
        for policy in ("global.minute", "basic.minute", "detailed.10"):
            listen += f"management.sample_retention_policies.{policy} = 1\n"
        configuration = self.directory / "rabbitmq.conf"
        configuration.write_text(configuration.read_text("utf-8") + listen, "utf-8")
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management].\n", "utf-8")

    def _definitions(self, vhosts: list[str]) -> str:
        made = json.loads(super()._definitions(vhosts))
        hashed = {"password_hash": _password_hash(MONITOR), "hashing_algorithm": "rabbit_password_hashing_sha256"}
        made["users"].append({"name": "monitor", "tags": ["administrator"], **hashed})
        return json.dumps(made)
