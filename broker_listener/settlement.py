"""Each delivery in our hands, from its arrival to its settlement: published and confirmed, then acked, or given back.

The rule that no job is lost by: an ack follows a confirm and nothing else. The rule that none is doubled by: a
delivery is under way at most once. What is held is bounded: over the bound the consumer is cancelled, below half it is
taken up again (https://www.rabbitmq.com/docs/consumers#unsubscribing: what was delivered stays valid).
"""

from typing import NamedTuple

from broker_listener.actions import (
    Ack,
    Action,
    CancelConsumer,
    Fault,
    GiveBack,
    HandOver,
    Park,
    PutBack,
    Report,
    ResumeConsumer,
)
from broker_listener.aside import Leaving, Line
from broker_listener.config import BrokerConfig
from broker_listener.confirms import Outcome
from broker_listener.consuming import Delivery
from broker_listener.counters import Counters
from broker_listener.job_log import HandedOver, Happened, Parked
from broker_listener.large_line import LargeLine
from broker_listener.requeue import redelivered_too_often
from broker_listener.user import Held, User


class UnderWay(NamedTuple):
    """A job that was handed over and is not confirmed."""

    user: User
    held: Held


class Settlement:
    """Counts, publishes and settles; ``actions`` is where it says what is to be done."""

    def __init__(self, config: BrokerConfig, actions: list[Action]) -> None:
        self._config = config
        self._actions = actions
        self._under_way: dict[int, UnderWay | Leaving | None] = {}
        """By token; None where the delivery was lost meanwhile: the broker has given it to somebody else."""
        self._token = 0
        self._to_park = Line()
        self._to_put_back = Line()
        self._large = LargeLine(config)
        self._large_token = 0
        self._can_publish = self._stopped = False
        self.consuming = True
        self.deliveries = 0
        self.bytes = 0
        self.counters = Counters()
        self.happened: list[Happened] = []
        """For the log, until it is taken."""

    @property
    def has_room(self) -> bool:
        """Whether a job may be handed over now."""
        aside = self._to_park.under_way + self._to_put_back.under_way + self._large.under_way
        return self._can_publish and len(self._under_way) - aside < self._config.max_unconfirmed

    @property
    def under_way(self) -> int:
        """How many published messages the broker has not answered."""
        return len(self._under_way)

    @property
    def aside(self) -> int:
        """How many messages wait to be parked, or to be put back by a publish."""
        return len(self._to_park) + len(self._to_put_back) + len(self._large)

    @property
    def not_parked(self) -> int:
        """How many messages could not be parked: they are held without their bodies, for ``max_hold`` at most."""
        return self._large.stuck + self._to_park.bare

    def stop(self) -> None:
        """Publish nothing any more."""
        self._stopped, self._can_publish = True, False

    def publishable(self, *, on: bool) -> None:
        """Take whether publishing is possible."""
        self._can_publish = on and not self._stopped

    def arrived(self, delivery: Delivery) -> None:
        """Count a delivery; at the bound, take no more."""
        self.counters.received += 1
        self.deliveries += 1
        self.bytes += len(delivery.body) + len(delivery.properties)
        if self.consuming and (self.bytes >= self._config.max_held_bytes or self.deliveries >= self._config.prefetch):
            self.consuming = False
            self._actions.append(CancelConsumer())
            self._actions.append(Report(Fault.HOLDING_FULL, None, f"jobs={self.deliveries} bytes={self.bytes}"))

    def hand_over(self, user: User, held: Held) -> None:
        """Publish the job."""
        self._actions.append(HandOver(self._published(UnderWay(user, held)), held.delivery))

    def park(self, leaving: Leaving, now: float) -> None:
        """Publish the message to the parked queue, as soon as that is possible."""
        if self._to_park.keeps or redelivered_too_often(leaving.delivery):
            self._to_park.join(leaving)
        else:
            self._to_park.join_bare(self._bared(leaving))
        self.serve(now)

    def keeps(self, size: int, now: float) -> bool:
        """Return whether a body over ``max_body`` that begins to arrive is to be kept."""
        return self._large.keeps(size, now)

    def park_large(self, leaving: Leaving, now: float) -> None:
        """Publish a large message to the parked queue when its turn comes.

        One that a quorum queue would soon drop is published to the jobs queue first, and so counted from zero there.
        """
        if redelivered_too_often(leaving.delivery):
            self.counters.published_again += 1
            leaving = leaving._replace(reason="", detail="")
        large = leaving.delivery.large
        self._large.join(leaving if large is not None and large.kept else self._bared(leaving))
        self.serve(now)

    def count_handed_over(self, user: User, held: Held, now: float) -> None:
        """Count a hand-over that the broker has taken."""
        user.handed_over += 1
        user.jobs += not held.returned
        self.counters.handed_over_after(now - held.since, first=not held.returned)
        if not held.returned:
            self.happened.append(HandedOver(user.name, held.delivery, now - held.since))

    def publish_again(self, delivery: Delivery, now: float) -> None:
        """Publish it to its queue and ack it once that is confirmed: it was redelivered too often to be held.

        One that waits for that is never given back, however long it takes: the broker would count that, too.
        """
        self.counters.published_again += 1
        self._actions.append(Report(Fault.REDELIVERED_OFTEN, None, f"waiting={len(self._to_put_back) + 1}"))
        self._to_put_back.join(Leaving(delivery, "", "", now))

    def held_too_long(self, delivery: Delivery) -> None:
        """Have the broker requeue what was held for ``max_hold``."""
        self.counters.held_too_long += 1
        self.give_back(delivery)

    def give_back(self, delivery: Delivery) -> None:
        """Have the broker requeue it."""
        self._actions.append(GiveBack(delivery))
        self._settled(delivery)

    def without_body(self, delivery: Delivery) -> Delivery:
        """Return the delivery without its bytes: it can be given back, and takes no room until then."""
        self.bytes -= len(delivery.body) + len(delivery.properties)
        self._resume()
        return delivery._replace(body=b"", properties=b"")

    def serve(self, now: float) -> None:
        """Publish of what is no hand-over what may be published now; what waits too long to be parked goes back."""
        while self._can_publish and (leaving := self._to_park.take(now)) is not None:
            self._actions.append(Park(self._published(leaving), leaving.delivery, leaving.reason, leaving.detail))
        while self._can_publish and (leaving := self._to_park.next_again()) is not None:
            self.give_back(leaving.delivery)
        while self._to_park.oldest() + self._config.max_hold <= now:
            self.held_too_long(self._to_park.take_oldest().delivery)
        while self._can_publish and (leaving := self._to_put_back.take(now)) is not None:
            self._actions.append(PutBack(self._published(leaving), leaving.delivery))
        self._serve_large(now)

    def next_at(self) -> float:
        """Give the time from which ``serve`` can do something, infinite where that is no matter of time."""
        lines = (self._to_park, self._to_put_back)
        return min(
            self._large.next_at(can_publish=self._can_publish),
            self._to_park.oldest() + self._config.max_hold,
            *(line.next_at(can_publish=self._can_publish) for line in lines),
        )

    def published(self, token: int, outcome: Outcome, now: float) -> UnderWay | None:
        """Take what the broker says of a message; give the hand-over that it was, None where that is of no interest."""
        entry = self._under_way.pop(token)
        if token == self._large_token:
            self._large_token = 0
            self._large.ended(taken=outcome is Outcome.CONFIRMED, now=now)
            if isinstance(entry, Leaving) and outcome is not Outcome.CONFIRMED:
                self._large.get_stuck(self._bared(entry))
        if isinstance(entry, Leaving):
            self._left(entry, outcome, now)
            return None
        if entry is not None and outcome is Outcome.CONFIRMED:
            user, held = entry
            self.count_handed_over(user, held, now)
            self._actions.append(Ack(held.delivery))
            self._settled(held.delivery)
        return entry

    def lost(self) -> None:
        """Forget every delivery: the broker gives them again. What is under way ends without an ack."""
        self._under_way = dict.fromkeys(self._under_way)
        self._to_park.clear()
        self._to_put_back.clear()
        self._large.lost()
        self.deliveries = self.bytes = 0
        self._resume()

    def _serve_large(self, now: float) -> None:
        for expired in self._large.expired(now):
            self.counters.held_too_long += 1
            self.give_back(expired.delivery)
        if not self._can_publish:
            return
        if (leaving := self._large.take(now)) is not None:
            self._large_token = token = self._published(leaving)
            delivery, reason = leaving.delivery, leaving.reason
            self._actions.append(Park(token, delivery, reason, leaving.detail) if reason else PutBack(token, delivery))
        elif (leaving := self._large.next_again(now)) is not None:
            self.give_back(leaving.delivery)

    def _published(self, entry: UnderWay | Leaving) -> int:
        self._token += 1
        self._under_way[self._token] = entry
        return self._token

    def _left(self, leaving: Leaving, outcome: Outcome, now: float) -> None:
        taken = outcome is Outcome.CONFIRMED
        if leaving.delivery.large is None:
            line = self._to_park if leaving.reason else self._to_put_back
            line.ended(leaving, taken=taken, now=now)
            if outcome is Outcome.NACKED and leaving.reason:
                self._lose_bodies()
        if taken:
            if leaving.reason:
                self._count_parked(leaving)
            self._actions.append(Ack(leaving.delivery))
            self._settled(leaving.delivery)
            return
        fault = Fault.NOT_PARKED if leaving.reason else Fault.NOT_PUBLISHED
        self._actions.append(Report(fault, None, f"outcome={outcome.value} waiting={self.aside}"))

    def _lose_bodies(self) -> None:
        for leaving in self._to_park.refused():
            if redelivered_too_often(leaving.delivery):
                self._to_park.join(leaving)
            else:
                self._to_park.join_bare(self._bared(leaving))

    def _bared(self, leaving: Leaving) -> Leaving:
        """Return it without what only a publish needs: it can be given back, and nothing else."""
        delivery = leaving.delivery
        self.bytes -= len(delivery.body) + len(delivery.properties)
        if delivery.large is not None:
            delivery.large.drop()
        return leaving._replace(delivery=delivery._replace(body=b"", properties=b""))

    def _count_parked(self, leaving: Leaving) -> None:
        user, reason = leaving.user, leaving.reason
        self.counters.parked[reason] += 1
        if user is not None:
            user.parked += 1
        self.happened.append(Parked(None if user is None else user.name, leaving.delivery, reason))

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
