"""Large messages in our hands: one body at a time, and each message settles, whatever happens in whatever order."""

from collections import deque
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker_listener.actions import Ack, Action, Fault, GiveBack, Park, PutBack, Report
from broker_listener.config import BrokerConfig, HandOverConfig
from broker_listener.confirms import Outcome
from broker_listener.consuming import Delivery
from broker_listener.hand_over import Machine
from broker_listener.large_body import LargeBody
from broker_listener.large_line import AWAITED_FOR
from broker_listener.properties import Properties

MAX_BODY, MAX_PARKABLE, MAX_HOLD = 1024, 4096, 60.0
WORN_OUT = Properties({}, [(b"x-delivery-count", b"l" + (10).to_bytes(8, "big"))]).encode()


class Broker:
    """A queue, what was delivered of it, and a machine that is asked at each header as the listener asks it."""

    def __init__(self) -> None:
        config = BrokerConfig(max_body=MAX_BODY, max_parkable=MAX_PARKABLE, max_hold=MAX_HOLD)
        self.machine = Machine(config, HandOverConfig())
        self.now = 100.0
        self.tag = 0
        self.queue: deque[tuple[int, bytes]] = deque()
        self.unsettled: dict[int, tuple[Delivery, int, bytes]] = {}
        self.without_answer: list[tuple[int, int | None]] = []
        self.bodies: list[LargeBody] = []
        self.parked = 0
        self.actions: list[Action] = []
        self.machine.publishable(on=True)

    def deliver(self) -> Delivery:
        size, properties = self.queue.popleft()
        body = LargeBody(size, kept=self.machine.keeps(size, self.now))
        self.tag += 1
        delivery = Delivery(1, self.tag, b"", properties, True, "", "", body)
        self.unsettled[self.tag] = delivery, size, properties
        self.bodies = [one for one in [*self.bodies, body] if one.kept]
        self.machine.too_large(delivery, body, self.now)
        self.act()
        return delivery

    def act(self) -> None:
        for action in self.machine.take_actions(self.now):
            self.actions.append(action)
            match action:
                case Park() | PutBack():
                    assert action.delivery.large is not None
                    assert action.delivery.large.kept, "only a body that is there is published"
                    assert action.delivery.large.size <= MAX_PARKABLE
                    assert not self.without_answer, "one at a time"
                    assert isinstance(action, PutBack) == (action.delivery.properties == WORN_OUT)
                    self.without_answer.append((action.token, action.delivery.tag))
                case Ack() | GiveBack():
                    _, size, properties = self.unsettled.pop(action.delivery.tag)
                    if isinstance(action, GiveBack):
                        self.queue.append((size, properties))

    def answer(self, outcome: Outcome) -> None:
        token, _ = self.without_answer.pop()
        self.parked += outcome is Outcome.CONFIRMED
        for body in self.bodies:
            list(body.taken())
        self.machine.published(token, outcome, self.now)
        self.act()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(1000):
            deadline = self.machine.next_deadline()
            if deadline > end:
                break
            self.now = max(self.now, deadline)
            self.machine.time_passed(self.now)
            self.act()
        else:
            raise AssertionError("the machine wants to be woken for ever")
        self.now = end


class LargeMessages(RuleBasedStateMachine):
    """Anything that broker and publishers may do with large messages."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.published = 0
        self.lost_under_way = 0

    @rule(size=st.integers(MAX_BODY + 1, MAX_PARKABLE + 500), worn_out=st.booleans())
    def a_message_is_published(self, size: int, worn_out: bool) -> None:  # noqa: FBT001
        self.broker.queue.append((size, WORN_OUT if worn_out else b"\0\0"))
        self.published += 1

    @precondition(lambda self: self.broker.queue)
    @rule()
    def a_message_is_delivered(self) -> None:
        self.broker.deliver()

    @precondition(lambda self: self.broker.queue)
    @rule()
    def a_body_begins_and_never_ends(self) -> None:
        """Lose the channel half-way, or fail in the message's step."""
        self.broker.machine.keeps(self.broker.queue[0][0], self.broker.now)

    @precondition(lambda self: self.broker.without_answer)
    @rule(outcome=st.sampled_from([Outcome.CONFIRMED, *Outcome]))
    def the_broker_answers(self, outcome: Outcome) -> None:
        self.broker.answer(outcome)

    @rule(on=st.booleans())
    def publishing_is_possible_or_not(self, on: bool) -> None:  # noqa: FBT001
        self.broker.machine.publishable(on=on)
        self.broker.act()

    @rule()
    def the_channel_is_lost(self) -> None:
        broker = self.broker
        self.lost_under_way += len(broker.without_answer)
        broker.queue.extend((size, properties) for _, size, properties in broker.unsettled.values())
        broker.unsettled.clear()
        broker.machine.deliveries_lost(broker.now)
        broker.act()

    @rule(seconds=st.sampled_from([0.5, 11.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.broker.wait(seconds)

    @invariant()
    def one_body_is_kept_at_most(self) -> None:
        assert sum(body.kept for body in self.broker.bodies) <= 1

    @invariant()
    def what_is_held_is_counted(self) -> None:
        settlement = self.broker.machine.settlement
        assert settlement.deliveries == len(self.broker.unsettled)
        under_way = sum(tag in self.broker.unsettled for _, tag in self.broker.without_answer)
        assert settlement.aside + under_way == len(self.broker.unsettled)
        assert settlement.not_parked <= len(self.broker.unsettled)
        if self.broker.unsettled and not self.broker.without_answer:
            assert self.broker.machine.next_deadline() < inf

    def teardown(self) -> None:
        """Let all be well at last: then all that can be parked is, and the rest goes round."""
        broker = self.broker
        broker.machine.publishable(on=True)
        broker.act()
        left = 3 * self.published + 10
        while left and any(size <= MAX_PARKABLE for size, _ in self.all_that_is_left()):
            left -= 1
            while broker.queue:
                broker.deliver()
            while broker.without_answer:
                broker.answer(Outcome.CONFIRMED)
            broker.wait(MAX_HOLD + 1)
        assert left, "all that can be parked is"

    def all_that_is_left(self) -> list[tuple[int, bytes]]:
        return [*self.broker.queue, *((size, raw) for _, size, raw in self.broker.unsettled.values())]


TestLargeMessages = LargeMessages.TestCase
TestLargeMessages.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_skipped_body_arrives_again_when_the_kept_one_is_parked() -> None:
    """It is given back for that, and has the place: others that arrive meanwhile are skipped."""
    broker = Broker()
    broker.queue.extend([(2000, b"\0\0"), (2001, b"\0\0"), (2002, b"\0\0")])
    first, second, third = broker.deliver(), broker.deliver(), broker.deliver()
    assert [one.large.kept for one in (first, second, third) if one.large] == [True, False, False]
    broker.answer(Outcome.CONFIRMED)
    assert [action.delivery.tag for action in broker.actions if isinstance(action, GiveBack)] == [second.tag]
    assert not broker.machine.keeps(2005, broker.now), "the place is the second's"
    again = broker.deliver()
    assert again.large is not None
    assert (again.large.size, again.large.kept) == (2001, True)


def test_place_is_free_again_if_another_consumer_has_it() -> None:
    """What was given back went to an executor: after ten seconds the next one's turn has come."""
    broker = Broker()
    broker.queue.extend([(2000, b"\0\0"), (2001, b"\0\0"), (2002, b"\0\0")])
    for _ in range(3):
        broker.deliver()
    broker.answer(Outcome.CONFIRMED)
    broker.queue.clear()
    broker.wait(AWAITED_FOR + 1)
    assert [size for size, _ in broker.queue] == [2002]


def test_body_over_max_parkable_is_an_alarm_and_goes_back_after_max_hold() -> None:
    """It is never kept, and told of each time that it arrives."""
    broker = Broker()
    broker.queue.append((MAX_PARKABLE + 1, b"\0\0"))
    delivery = broker.deliver()
    assert delivery.large is not None
    assert not delivery.large.kept
    assert broker.machine.settlement.not_parked == 1
    assert [action.fault for action in broker.actions if isinstance(action, Report)] == [Fault.NOT_PARKABLE]
    broker.wait(MAX_HOLD - 1)
    assert not broker.queue
    broker.wait(2)
    assert (broker.machine.settlement.not_parked, len(broker.queue)) == (0, 1)


def test_body_that_was_not_taken_is_held_without_it_until_max_hold() -> None:
    """Nor does it hold up the next: that one's turn comes after a pause."""
    broker = Broker()
    broker.queue.extend([(2000, WORN_OUT), (2001, b"\0\0")])
    broker.deliver()
    broker.deliver()
    broker.answer(Outcome.NACKED)
    assert broker.machine.settlement.bytes == 0
    broker.wait(1)
    assert [size for size, _ in broker.queue] == [2001]
    broker.queue.clear()
    broker.wait(MAX_HOLD)
    assert [size for size, _ in broker.queue] == [2000]
