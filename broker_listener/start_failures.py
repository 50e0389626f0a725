"""What follows from a failed start for its user: how soon it is tried again, and what counts towards parking.

Only executors that ran and died before they were ready count, and only while ``host_fault`` does not say that all
users' do. Sans-I/O; time is an argument.
"""

from collections.abc import Mapping
from math import inf
from types import MappingProxyType
from typing import Final

from broker_listener.host_fault import USERS_TOO, Blame, FaultReason, HostChange, HostFaults
from broker_listener.transitions import State
from broker_listener.user import User
from protocol.messages import FailedReason

STRIKES: Final[Mapping[FailedReason, FaultReason]] = MappingProxyType(
    {FailedReason(reason.value): reason for reason in FaultReason if reason is not FaultReason.DIED_BEFORE_READY}
)
"""Failures that are the fault of the host, or of the user."""
START_FAILED: Final = "start_failed"
"""Why jobs of a user are parked whose executors die."""
OUTAGE_PAUSE: Final = 10.0
"""Seconds from one request to the next while starts fail: of more than six a minute the helper would refuse some."""
MIN_PAUSE: Final = 0.05
MAX_PAUSE: Final = 60.0
PATIENT_AFTER: Final = 3600.0
"""Seconds for which a fault of the user's own is tried again as often as any other."""
PATIENT_PAUSE: Final = 600.0
MAX_STRIKES: Final = 1000


class StartFailures:
    """Reads failures into the user's record, and tells ``host`` of them."""

    def __init__(self, host: HostFaults) -> None:
        self._host = host

    def struck(self, user: User, reason: FaultReason, retry_after: float, now: float) -> float:
        """Handle a failed start; return the seconds until the next one, which is never sooner than the helper says."""
        record = user.starts
        self._host.struck(user.name, reason, now)
        # The first time the helper's word alone counts: two hosts that make one home at the same time are done soon.
        again = record.strikes > 0 or reason is FaultReason.SCOPE_UNAVAILABLE
        pause = max(min(retry_after, MAX_PAUSE), user.asked_at + OUTAGE_PAUSE - now if again else MIN_PAUSE)
        record.strikes = min(record.strikes + 1, MAX_STRIKES)
        if self._host.start_fault(now) is not None or reason not in USERS_TOO:
            record.blame, record.struck_since = Blame.HOST, inf
            return pause
        record.blame, record.struck_since = Blame.USER, min(record.struck_since, now)
        return PATIENT_PAUSE if fails_for_long(user, now) else pause

    def died(self, user: User, now: float) -> int:
        """Handle the end of an executor that was not ready; return how many of the user's died so in a row.

        That is 0 if they die by the host's fault, and what was counted before it was known to be the host's is void.
        """
        record = user.starts
        self._host.died(user.name, now)
        if record.deaths_voided != self._host.deaths_voided:
            record.deaths, record.deaths_voided = 0, self._host.deaths_voided
        if self._host.death_fault(now) is not None:
            record.blame = Blame.HOST
            return 0
        record.blame = Blame.USER
        record.deaths += 1
        return record.deaths

    def host_is_at_fault(self, user: User, change: HostChange, now: float) -> bool:
        """Take from the user what turned out to be the host's fault; return True if its pause ends by that."""
        record = user.starts
        record.blame = record.blame and Blame.HOST
        if change.fault.reason is FaultReason.DIED_BEFORE_READY:
            record.deaths, record.deaths_voided = 0, self._host.deaths_voided
            return user.state is State.FAILED and user.refusal[0] == START_FAILED
        was_patient = fails_for_long(user, now)
        record.struck_since = inf
        return was_patient and user.state is State.BACKING_OFF


def fails_for_long(user: User, now: float) -> bool:
    """Return True if the user's starts have failed for an hour by no fault of the host."""
    return now - user.starts.struck_since >= PATIENT_AFTER
