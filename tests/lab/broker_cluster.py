"""A cluster of RabbitMQ nodes on this host, each of which can be killed and started again by itself.

To a ``Site`` it is what one node is: accounts, a port to connect to, ``ctl`` and vhosts. The nodes share one epmd and
one Erlang cookie; everything else is each node's own.
"""

from collections.abc import Iterable
from pathlib import Path

from tests.lab.broker_node import BrokerAccount, BrokerNode
from tests.lab.vhosts import Vhosts


class BrokerCluster:
    """So many nodes in directories beginning with ``directory``, none of which may exist."""

    def __init__(self, directory: Path, size: int = 3) -> None:
        first = BrokerNode(directory.with_name(f"{directory.name}-0"))
        others = [BrokerNode(directory.with_name(f"{directory.name}-{n}"), first) for n in range(1, size)]
        self.nodes = [first, *others]
        self.port = first.port
        self.server, self.listener, self.executors = first.server, first.listener, first.executors
        self.vhosts = Vhosts(self)

    def create(self) -> None:
        """Write the files of all nodes; start nothing yet."""
        for node in self.nodes:
            node.create()

    def start(self) -> None:
        """Start the nodes and have them join the first."""
        for node in self.nodes:
            node.start()
        for node in self.nodes[1:]:
            node.ctl("stop_app")
            node.ctl("join_cluster", self.nodes[0].name)
            node.ctl("start_app")

    def remove(self) -> None:
        """End everything and delete all files."""
        for node in reversed(self.nodes):
            node.remove()

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` at a node that runs."""
        return next(node for node in self.nodes if node.is_running).ctl(*arguments)

    def add_vhosts(self, names: Iterable[str]) -> None:
        """Make vhosts, empty, with the permissions of all three accounts."""
        self.nodes[0].add_vhosts(names)

    def urls(self, account: BrokerAccount, vhost: str, *, with_password: bool = True) -> list[str]:
        """Give an account's URL at each node."""
        return [account.at(node.port, vhost, with_password=with_password) for node in self.nodes]

    def msgq(self, vhost: str) -> str:
        """Give what executors are told: the first broker with account and vhost, the others as addresses alone."""
        others = [f"amqp://127.0.0.1:{node.port}" for node in self.nodes[1:]]
        return ",".join([self.executors.at(self.port, vhost), *others])

    def leader_of(self, queue: str, vhost: str) -> BrokerNode:
        """Give the node that leads a quorum queue now."""
        rows = self.ctl("list_queues", "-p", vhost, "--no-table-headers", "name", "leader").splitlines()
        leader = dict(row.split("\t") for row in rows)[queue]
        return next(node for node in self.nodes if node.name == leader)
