"""Each delivery in our hands, from its arrival to its settlement: published and confirmed, then acked, or given back.

The rule that no job is lost by: an ack follows a confirm and nothing else. The rule that none is doubled by: a
delivery is under way at most once. What is held is bounded: over the bound the consumer is cancelled, below half it is
taken up again (https://www.rabbitmq.com/docs/consumers#unsubscribing: what was delivered stays valid).
"""

from collections import deque
from math import inf
from typing import Final, NamedTuple

from broker_listener.actions import Ack, Action, CancelConsumer, Fault, GiveBack, HandOver, Park, Report, ResumeConsumer
from broker_listener.config import BrokerConfig
from broker_listener.consuming import Delivery
from broker_listener.publishing import Outcome
from broker_listener.user import Held, User

MAX_PARKING: Final = 100
"""Parked messages under way; beside ``max_unconfirmed``, so that a flood of them delays no hand-over."""
PARKING_PAUSE: Final = 0.5
MAX_PARKING_PAUSE: Final = 30.0


class Parking(NamedTuple):
    """A message on its way to the parked queue."""

    delivery: Delivery
    reason: str
    detail: str
    since: float


class UnderWay(NamedTuple):
    """A job that was handed over and is not confirmed."""

    user: User
    held: Held


class Settlement:
    """Counts, publishes and settles; ``actions`` is where it says what is to be done."""

    def __init__(self, config: BrokerConfig, actions: list[Action]) -> None:
        self._config = config
        self._actions = actions
        self._under_way: dict[int, UnderWay | Parking | None] = {}
        """By token; None where the delivery was lost meanwhile: the broker has given it to somebody else."""
        self._token = 0
        self._to_park: deque[Parking] = deque()
        self._parking = 0
        self._parking_failures = 0
        self._park_at = 0.0
        self._can_publish = self._stopped = False
        self.consuming = True
        self.deliveries = 0
        self.bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether a job may be handed over now."""
        return self._can_publish and len(self._under_way) - self._parking < self._config.max_unconfirmed

    @property
    def under_way(self) -> int:
        """How many published messages the broker has not answered."""
        return len(self._under_way)

    @property
    def to_park(self) -> int:
        """How many messages wait to be parked."""
        return len(self._to_park)

    def stop(self) -> None:
        """Publish nothing any more."""
        self._stopped, self._can_publish = True, False

    def publishable(self, *, on: bool) -> None:
        """Take whether publishing is possible."""
        self._can_publish = on and not self._stopped

    def arrived(self, delivery: Delivery) -> None:
        """Count a delivery; at the bound, take no more."""
        self.deliveries += 1
        self.bytes += len(delivery.body) + len(delivery.properties)
        if self.consuming and (self.bytes >= self._config.max_held_bytes or self.deliveries >= self._config.prefetch):
            self.consuming = False
            self._actions.append(CancelConsumer())
            self._actions.append(Report(Fault.HOLDING_FULL, None, f"jobs={self.deliveries} bytes={self.bytes}"))

    def hand_over(self, user: User, held: Held) -> None:
        """Publish the job."""
        self._token += 1
        self._under_way[self._token] = UnderWay(user, held)
        self._actions.append(HandOver(self._token, held.delivery))

    def park(self, parking: Parking, now: float) -> None:
        """Publish the message to the parked queue, as soon as that is possible."""
        self._to_park.append(parking)
        self.park_next(now)

    def park_next(self, now: float) -> None:
        """Publish what waits to be parked; after one that was not taken, a single one until one is."""
        if not self._to_park:
            return
        most = 1 if self._parking_failures else MAX_PARKING
        while self._to_park and self._can_publish and now >= self._park_at and self._parking < most:
            parking = self._to_park.popleft()
            self._token += 1
            self._under_way[self._token] = parking
            self._parking += 1
            self._actions.append(Park(self._token, parking.delivery, parking.reason, parking.detail))
        while self._to_park and self._to_park[0].since + self._config.max_hold <= now:
            self.give_back(self._to_park.popleft().delivery)

    def park_at(self) -> float:
        """Give the time from which ``park_next`` can do something, infinite where that is no matter of time."""
        if not self._to_park:
            return inf
        too_old = self._to_park[0].since + self._config.max_hold
        return min(self._park_at, too_old) if self._can_publish and not self._parking else too_old

    def give_back(self, delivery: Delivery) -> None:
        """Put the delivery back as it is."""
        self._actions.append(GiveBack(delivery))
        self._settled(delivery)

    def published(self, token: int, outcome: Outcome, now: float) -> UnderWay | None:
        """Take what the broker says of a message; give the hand-over that it was, None where that is of no interest."""
        entry = self._under_way.pop(token)
        if isinstance(entry, Parking):
            self._parked(entry, outcome, now)
            return None
        if entry is not None and outcome is Outcome.CONFIRMED:
            self._actions.append(Ack(entry.held.delivery))
            self._settled(entry.held.delivery)
        return entry

    def lost(self) -> None:
        """Forget every delivery: the broker gives them again. What is under way ends without an ack."""
        self._under_way = dict.fromkeys(self._under_way)
        self._to_park.clear()
        self._parking = 0
        self.deliveries = self.bytes = 0
        self._resume()

    def _parked(self, parking: Parking, outcome: Outcome, now: float) -> None:
        self._parking -= 1
        if outcome is not Outcome.CONFIRMED:
            self._park_at = now + min(PARKING_PAUSE * 2**self._parking_failures, MAX_PARKING_PAUSE)
            self._parking_failures = min(self._parking_failures + 1, 10)
            self._to_park.appendleft(parking)
            self._actions.append(
                Report(Fault.NOT_PARKED, None, f"outcome={outcome.value} waiting={len(self._to_park)}")
            )
            return
        self._parking_failures, self._park_at = 0, 0.0
        self._actions.append(Ack(parking.delivery))
        self._settled(parking.delivery)

    def _settled(self, delivery: Delivery) -> None:
        self.deliveries -= 1
        self.bytes -= len(delivery.body) + len(delivery.properties)
        if not self.consuming:
            self._resume()

    def _resume(self) -> None:
        config = self._config
        if not self.consuming and self.bytes * 2 < config.max_held_bytes and self.deliveries * 2 < config.prefetch:
            self.consuming = True
            self._actions.append(ResumeConsumer())
