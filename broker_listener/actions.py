"""What the per-user machine wants done: a closed list of small tuples, carried out by ``service`` in their order.

Tuples and not dataclasses, since two of them are made for every job that passes.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from broker_listener.consuming import Delivery
from broker_listener.host_messages import UserState


class HandOver(NamedTuple):
    """Publish the job with ``canHandle``; its outcome comes back under the token."""

    token: int
    delivery: Delivery


class Park(NamedTuple):
    """Publish the message to the parked queue; its outcome comes back under the token."""

    token: int
    delivery: Delivery
    reason: str
    detail: str


class PutBack(NamedTuple):
    """Publish the message to its own queue alone, where its redeliveries count from nothing; its outcome comes back."""

    token: int
    delivery: Delivery


class Ack(NamedTuple):
    """Settle the delivery: it was published and confirmed."""

    delivery: Delivery


class GiveBack(NamedTuple):
    """Have the broker put the delivery back to its place in the queue."""

    delivery: Delivery


class Ask(NamedTuple):
    """Ask the helper for the user's executor; ``fresh`` where one may be started that only its sockets tell apart.

    ``probe``: it is the user's turn to be started here although the host is at fault.
    """

    user: str
    fresh: bool
    probe: bool = False


class Watch(NamedTuple):
    """Look for the connection of the executor that was started for the user."""

    user: str
    uid: int
    cgroup: int | None


class Unwatch(NamedTuple):
    """Look for it no longer."""

    user: str


class Tell(NamedTuple):
    """Tell the other hosts what has become of the user's executor here."""

    user: str
    state: UserState


class CancelConsumer(NamedTuple):
    """Take no more deliveries; those that are held stay valid."""


class ResumeConsumer(NamedTuple):
    """Take deliveries again."""


class Fault(StrEnum):
    """What an operator should hear of."""

    START_OVERDUE = "start_overdue"
    START_ENDED_BADLY = "start_ended_badly"
    NO_EXECUTOR_NOW = "no_executor_now"
    STARTS_FAIL_FOR_LONG = "starts_fail_for_long"
    HELD_TOO_LONG = "held_too_long"
    NOT_PUBLISHED = "not_published"
    REDELIVERED_OFTEN = "redelivered_often"
    PARKED = "parked"
    NOT_PARKED = "not_parked"
    NOT_PARKABLE = "not_parkable"
    HOLDING_FULL = "holding_full"
    OVER_SHARE = "over_share"


ADVICE: Final[Mapping[Fault, str]] = MappingProxyType(
    {
        Fault.START_OVERDUE: "executor has no connection to the broker yet, its jobs are handed over all the same; "
        "see its log and hand_over.start_timeout",
        Fault.START_ENDED_BADLY: "executor ran and ended before it was connected; see its output",
        Fault.NO_EXECUTOR_NOW: "helper starts no executor now, the jobs are held and it is asked again",
        Fault.STARTS_FAIL_FOR_LONG: "the user's executor could not be started for an hour, by no fault of the host, "
        "and is tried every 10 minutes from now on; see the helper's log",
        Fault.HELD_TOO_LONG: "jobs were held for broker.max_hold and went back to the queue unchanged; "
        "see why the user has no executor",
        Fault.NOT_PUBLISHED: "broker did not take a hand-over, it is tried again; see the jobs exchange's binding, "
        "and whether its queue is full",
        Fault.REDELIVERED_OFTEN: "messages were redelivered ten times and are published to their queue again, or it "
        "would drop them at its delivery limit; see why connections are lost or jobs given back",
        Fault.PARKED: "message was parked; knime-peruser parked list tells why",
        Fault.NOT_PARKED: "parked queue takes nothing, the messages are held; is it full? see knime-peruser parked",
        Fault.NOT_PARKABLE: "message is larger than broker.max_parkable: it is held without its body and goes back to "
        "the queue after broker.max_hold, again and again; remove it there, and see who publishes so much",
        Fault.OVER_SHARE: "user holds more than a quarter of broker.max_held_bytes while more than half is held, the "
        "newest jobs go back to the queue and come again; see why the user's jobs are held",
        Fault.HOLDING_FULL: "no further jobs are taken until half of those held are gone; "
        "see why they are held, and broker.max_held_bytes",
    }
)


class Report(NamedTuple):
    """Tell the operator; ``user`` is None where no user is concerned, ``detail`` is short ASCII."""

    fault: Fault
    user: str | None
    detail: str


Action = (
    HandOver | Park | PutBack | Ack | GiveBack | Ask | Watch | Unwatch | Tell | CancelConsumer | ResumeConsumer | Report
)
