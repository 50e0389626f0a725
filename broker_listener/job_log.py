"""The log's line for each job's first hand-over, each parked message and each change of a user's state.

``job`` tells the same job again in all of them: it is taken of the body and the message id, so that nothing of a body
is shown. A message id is whatever its publisher wrote: escaped and cut. A flood of jobs is a bounded number of lines.
"""

import logging
from typing import Final, NamedTuple

from broker_listener.consuming import Delivery
from broker_listener.limited_log import LimitedLog
from broker_listener.pacing import digest
from broker_listener.properties import BadProperties, message_id
from broker_listener.transitions import State

LOG: Final = logging.getLogger(__name__)
LINES: Final = 600
"""A minute, of hand-overs and of states."""
PARKED_LINES: Final = 60
"""A minute: whoever may publish can have messages parked."""
MAX_ID: Final = 64
ADVICE: Final = (
    "executors do not start here, whosever they are; the jobs are held; see the helper's log, knime-peruser check"
)


class HandedOver(NamedTuple):
    """The broker has taken a job's first hand-over, ``waited`` seconds after the job arrived."""

    user: str
    delivery: Delivery
    waited: float


class Parked(NamedTuple):
    """The broker has taken a message into the parked queue; ``user`` is None where it is no job."""

    user: str | None
    delivery: Delivery
    reason: str


class Changed(NamedTuple):
    """A user's state has changed; ``oldest`` is the user's oldest held job, None where none is held."""

    user: str
    was: State
    state: State
    oldest: Delivery | None


class HostChanged(NamedTuple):
    """The host was found to be at fault, or is no longer: why executors do not start, and of how many users."""

    reason: str
    users: int
    over: bool


Happened = HandedOver | Parked | Changed | HostChanged


class JobLog:
    """Writes the lines."""

    def __init__(self) -> None:
        self._hand_overs = LimitedLog(LOG, LINES)
        self._parked = LimitedLog(LOG, PARKED_LINES)
        self._states = LimitedLog(LOG, LINES)
        self._host = LimitedLog(LOG)

    def tell(self, happened: Happened) -> None:
        """Write what happened, or count it as left out."""
        if isinstance(happened, HandedOver):
            user, delivery, waited = happened
            self._hand_overs.info("event=handed_over user=%s job=%s waited=%.3f", user, _Job(delivery), waited)
        elif isinstance(happened, Parked):
            text = "event=message_parked user=%s job=%s reason=%s"
            self._parked.info(text, happened.user, _Job(happened.delivery), happened.reason)
        elif isinstance(happened, HostChanged):
            self._tell_host(happened)
        else:
            user, was, state, oldest = happened
            job = "none" if oldest is None else _Job(oldest)
            self._states.info("event=state user=%s state=%s was=%s job=%s", user, _name(state), _name(was), job)

    def _tell_host(self, changed: HostChanged) -> None:
        if changed.over:
            self._host.info("event=host_fault_over reason=%s", changed.reason)
        else:
            text = "event=host_fault reason=%s users=%d advice=%r"
            self._host.warning(text, changed.reason, changed.users, ADVICE)


class _Job:
    """What a job is called in the log; worked out only where the line is written."""

    __slots__ = ("_delivery",)

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    def __str__(self) -> str:
        try:
            identity = message_id(self._delivery.properties)
        except BadProperties:
            identity = None
        large = self._delivery.large
        job = (digest(self._delivery.body, identity) if large is None else large.digest(identity)).hex()
        return job if identity is None else f"{job} message_id={identity[:MAX_ID].decode('latin-1')!a}"


def _name(state: State) -> str:
    return state.name.lower()
