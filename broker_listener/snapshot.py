"""What there is to tell of the listener at one moment: what ``status`` and the metrics are made of.

Nothing is copied: it names what the parts keep, for who looks at it at once and changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from broker_listener.broker_connections import ConnectionState
from broker_listener.cluster import ClusterView
from broker_listener.host_fault import HostFault
from broker_listener.settlement import Settlement
from broker_listener.user import User


class HelperState(NamedTuple):
    """Whether the helper can be asked, since when (time.monotonic()), and what it said last: None where not known."""

    up: bool
    since: float
    draining: bool | None
    free: int | None
    losses: int


class Snapshot(NamedTuple):
    """The parts; ``users`` goes on changing while somebody looks."""

    connections: Mapping[str, ConnectionState]
    helper: HelperState
    settlement: Settlement
    users: Mapping[str, User]
    host_faults: Sequence[HostFault] = ()
    """Why executors do not start on this host, whosever they are."""
    cluster: ClusterView | None = None
    """The hosts that share the queue; None where this one asks no others."""

    @property
    def consuming(self) -> bool:
        """Whether jobs are taken: not at the bound of what is held, without the queue, or until one can publish."""
        return self.settlement.consuming and self.connections["consume"].state == "up"
