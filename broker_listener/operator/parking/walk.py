"""A walk through the parked queue, and what is done to a message on it: it is retried, dropped, or given back.

No message is lost or doubled by it, whenever this process is killed. A message is acked only when the broker has its
job. The job is published in one transaction with a mark of the message, in a queue of ours; then the message is acked,
and some time later its mark. So who was killed in between leaves the message and its mark: the job was published, or
was refused at that very moment, which nobody can tell any more. Such a message is in doubt. It stays and is shown as
that, and it is retried by who asks for it alone. transactions.py says what the broker promises, and what it does not.

A mark outlives its message's ack since a classic queue writes an ack when it comes to it: a broker that was killed had
every message of a run of 60 again (seen on 3.10). It writes all of them when it is idle for a second. A mark that is
left without a message, by a kill, means nothing; it is taken away later, on a walk that met every message.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from broker_listener.operator.broker import Message, Refused, Session
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.parking.message import (
    Facts,
    NotAccepted,
    NotRestorable,
    deliveries,
    facts_of,
    fingerprint,
    original,
)
from broker_listener.operator.parking.taken import PERSISTENT, Record
from broker_listener.operator.parking.transactions import Commit, Transactions
from broker_listener.requeue import MAX_REDELIVERIES

GIVING_BACK: Final = 2.0
"""Seconds in which a queue has what was given back; a quorum queue's count comes after it."""
IDLE = 2.0
"""Seconds after which a queue that nobody used has written what it knows (gen_server2's backoff of 1 s, and some)."""
MARKS_KEPT: Final = 1000
"""Marks that are kept until the queue is left idle for that time."""
MARK_AGES: Final = 600.0
"""Seconds after which a mark without a message is none that waits for its message."""
MAX_MARKS: Final = 100_000
"""More of them are not ours."""


class Names(NamedTuple):
    """The queues, and where jobs are published: exchange and routing key, as the listener hands them over."""

    parked: str
    marks: str
    taken: str
    thousands: str
    target: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that was taken off the queue and is not settled.

    ``mark`` is the delivery tag of its mark, if it has one. ``worn``: its queue may soon drop it for being looked at.
    """

    facts: Facts
    message: Message
    mark: int | None
    worn: bool

    @property
    def in_doubt(self) -> bool:
        """Whether a retry of it was interrupted."""
        return self.mark is not None


class Walk:
    """From the oldest message to the youngest of those that are there now."""

    def __init__(self, session: Session, names: Names, counts: tuple[int, int], *, counted: bool) -> None:
        self._session, self._names, self._counted = session, names, counted
        self._transactions = Transactions(session)
        self.messages, marks = counts
        self._marks = self._taken_marks(marks)
        """Delivery tags and Unix times by fingerprint; in our hands, so the queue of marks has new ones alone."""
        self.marks_left = sum(map(len, self._marks.values()))
        self._kept: list[int] = []
        """Delivery tags of the marks of messages that are off."""
        self._held = 0
        self._has_met_all = False
        self._record = Record(names.taken, names.thousands)

    def taken(self) -> Iterator[Taken]:
        """Take one after the other. What is parked meanwhile is behind those, and is not met."""
        for _ in range(self.messages):
            message = self._transactions.get(self._names.parked)
            if message is None:
                break
            self._held += 1
            # What a first delivery says of it is its publisher's.
            worn = self._counted and message.redelivered and deliveries(message.properties) >= MAX_REDELIVERIES
            yield Taken(facts_of(message.body, message.properties), message, self._mark_of(message), worn)
        self._has_met_all = True

    def properties_of(self, taken: Taken) -> bytes:
        """Give the properties that the job had; raises NotRestorable."""
        properties = original(taken.message.properties, counted=self._counted)
        if len(properties) > self._session.max_properties:
            raise NotRestorable("its properties are larger than a frame of this connection")
        return properties

    def retry(self, taken: Taken) -> None:
        """Publish the job as it was, and take the message off.

        Raises:
            NotRestorable: the job cannot be had from the message; it is where it was.
            NotAccepted: the broker does not take jobs; this walk is at its end.
        """
        message, properties = taken.message, self.properties_of(taken)
        self._record_one()
        mark = f"{fingerprint(message.body, message.properties)} {time.time():.3f}".encode()
        try:
            self._transactions.publish(*self._names.target, message.body, properties)
            self._transactions.publish("", self._names.marks, mark, PERSISTENT)
            end = self._transactions.commit()
        except Refused as error:  # before the commit: nothing of it has happened
            self._record.one_less()
            self._begin_again()
            raise NotAccepted(str(error)) from None
        if end is Commit.REFUSED:
            self._begin_again()
        if end is not Commit.DONE:
            self._settle(self._take_mark(mark))
            self._record.one_less()
            raise NotAccepted(end.value)
        made = self._take_mark(mark)
        self._settle(message.tag, taken.mark)
        self._is_off(taken)
        self._kept += [] if made is None else [made]
        if len(self._kept) >= MARKS_KEPT:
            self._settle_kept()

    def drop(self, taken: Taken) -> None:
        """Take the message off, and its mark; raises NotAccepted, and it is where it was."""
        self._record_one()
        self._settle(taken.message.tag, taken.mark)
        self._is_off(taken)

    def close(self) -> None:
        """Give back what was not settled, and come back when the queue has it again."""
        if self._kept:
            self._settle_kept()
        if self._has_met_all:
            self._settle_old_marks()
        self._record.close(self._transactions)
        if units := self._session.queue(self._names.taken):
            self._record.compact(self._transactions, units.messages)
        self._transactions.close()
        deadline = time.monotonic() + GIVING_BACK
        while (state := self._session.queue(self._names.parked)) and state.messages < self._held:
            if time.monotonic() > deadline:  # somebody else has taken some
                return
            time.sleep(0.01)

    def _record_one(self) -> None:
        """Have it recorded that a message is taken, before it is: who finds fewer messages asks this record."""
        try:
            end = self._record.one_more(self._transactions)
        except Refused as error:
            self._begin_again()
            raise NotAccepted(str(error)) from None
        if end is Commit.REFUSED:
            self._begin_again()
            raise NotAccepted(f"{self._names.taken}: {end.value}")

    def _begin_again(self) -> None:
        """Open another channel where the broker closed this one: what was taken on it is back, the marks as well."""
        self._transactions = Transactions(self._session)
        self._held = 0
        self._kept.clear()

    def _is_off(self, taken: Taken) -> None:
        self._held -= 1
        self.marks_left -= taken.in_doubt

    def _settle_kept(self) -> None:
        """Take the marks away whose messages do not come back any more."""
        time.sleep(IDLE)
        self._settle(*self._kept)
        self._kept.clear()

    def _settle_old_marks(self) -> None:
        old = [tag for marks in self._marks.values() for tag, made in marks if made < time.time() - MARK_AGES]
        if old:
            self._settle(*old)
            self.marks_left -= len(old)

    def _settle(self, *tags: int | None) -> None:
        for tag in tags:
            if tag is not None:
                self._transactions.ack(tag)
        self._transactions.commit()

    def _taken_marks(self, count: int) -> dict[str, list[tuple[int, float]]]:
        if count > MAX_MARKS:
            raise Stopped(Outcome.FINDING, f"{count} messages are in {self._names.marks}: whoever filled it, purge it")
        marks: dict[str, list[tuple[int, float]]] = {}
        for _ in range(count):
            if mark := self._transactions.get(self._names.marks):
                key, _, made = mark.body.decode("ascii", "replace").partition(" ")
                marks.setdefault(key, []).append((mark.tag, float(made) if _SECONDS(made) else 0.0))
        return marks

    def _mark_of(self, message: Message) -> int | None:
        """Give the mark of a message, which is then no other's."""
        if not self._marks:
            return None
        marks = self._marks.get(fingerprint(message.body, message.properties))
        return marks.pop()[0] if marks else None

    def _take_mark(self, mark: bytes) -> int | None:
        """Take the mark that was just made."""
        while taken := self._transactions.get(self._names.marks):
            if taken.body == mark:
                return taken.tag
        return None


_SECONDS: Final = re.compile(r"[0-9]{1,12}\.[0-9]{3}", re.ASCII).fullmatch
