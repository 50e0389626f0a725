"""What the helper says of its executors, asked over the operators' socket; and whose process it is that answers."""

from dataclasses import dataclass
from pathlib import Path

from broker_listener.operator.helper_socket import connected
from broker_listener.operator.outcome import Stopped


@dataclass(frozen=True, slots=True)
class Running:
    """The helper's own account (``uid``, by the kernel's word), and what it answers for."""

    uid: int
    pids: frozenset[int]
    uids: frozenset[int]
    draining: bool
    free: int


def ask(path: str) -> Running | str:
    """Ask for the list; give why there is no answer, if so."""
    try:
        with connected(path) as helper:
            listing = helper.executors()
            uid = Path(f"/proc/{helper.pid}").stat().st_uid
    except Stopped as stopped:
        return str(stopped)
    except OSError:
        return f"{path}: who answered there ended"
    pids, uids = {entry.pid for entry in listing.executors}, {entry.uid for entry in listing.executors}
    return Running(uid, frozenset(pids), frozenset(uids), listing.draining, listing.free)
