"""What one user may hold of what all share: a quarter once more than half is held, the newest go back, and slowly."""

from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker_listener.actions import CancelConsumer, Fault, GiveBack, Report, ResumeConsumer
from broker_listener.config import BrokerConfig, HandOverConfig
from broker_listener.consuming import Delivery
from broker_listener.hand_over import Machine
from broker_listener.pacing import digest
from broker_listener.properties import Properties
from broker_listener.shares import RETURNS_PER_SECOND
from broker_listener.transitions import State
from protocol.messages import RequestId, Running

ID = RequestId("1")
MOST = 2**20
USERS = ("alice", "bob", "eve", "zoe", "max")


class Queue(RuleBasedStateMachine):
    """A broker's queue in front of a machine whose users have no executor.

    What goes back is delivered again at once, in its old place: before what was never delivered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(BrokerConfig(max_held_bytes=MOST), HandOverConfig(), jitter=lambda: 0.5)
        self.now = 0.0
        self.tags = count(1)
        self.consuming = True
        self.ready: list[tuple[int, str, bytes]] = []
        self.number = 0
        self.out: dict[int, tuple[int, str, bytes]] = {}
        self.given_back: list[float] = []

    @rule(user=st.sampled_from(USERS), jobs=st.sampled_from([1, 5, 40]), size=st.sampled_from([100, 20_000, 90_000]))
    def jobs_arrive(self, user: str, jobs: int, size: int) -> None:
        for _ in range(jobs):
            self.number += 1
            self.ready.append((self.number, user, b"%d " % self.number + bytes(size)))
        self.deliver()

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 7.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.machine.next_deadline()) <= end:
            self.now = max(self.now, deadline)
            self.machine.time_passed(self.now)
            self.deliver()
        self.now = end

    @precondition(lambda self: self.out)
    @rule()
    def channel_is_lost(self) -> None:
        self.ready = sorted([*self.ready, *self.out.values()])
        self.out.clear()
        self.machine.deliveries_lost(self.now)
        self.deliver()

    def deliver(self) -> None:
        while True:
            for action in self.machine.take_actions(self.now):
                match action:
                    case GiveBack():
                        self.ready.append(self.out.pop(action.delivery.tag))  # KeyError: settled twice
                        self.ready.sort()
                        self.given_back.append(self.now)
                    case CancelConsumer() | ResumeConsumer():
                        self.consuming = isinstance(action, ResumeConsumer)
            if not self.ready or not self.consuming:
                return
            number, user, body = self.ready.pop(0)
            delivery = Delivery(1, next(self.tags), body, b"", True, "", "")
            self.out[delivery.tag] = (number, user, body)
            self.machine.job(user, delivery, digest(body, None), self.now)

    @invariant()
    def what_is_held_is_bounded(self) -> None:
        assert self.machine.settlement.bytes < MOST + 90_100

    @invariant()
    def nobody_holds_more_than_a_share_when_more_than_half_is_held(self) -> None:
        if self.machine.settlement.bytes > MOST / 2:
            assert all(user.held_bytes <= MOST / 4 for user in self.machine.users.values())

    @invariant()
    def what_is_held_is_what_was_first_seen(self) -> None:
        for user in self.machine.users.values():
            surplus = [int(self.out[entry.delivery.tag][0]) for entry in self.machine._shares._surplus.get(user, ())]
            held = [int(held.delivery.body.split()[0]) for held in user.held]
            assert not surplus or not held or min(held) < min(surplus), "the oldest stays"

    @invariant()
    def few_go_back_at_a_time(self) -> None:
        """Of all users, as long as nobody has an executor."""
        late = [at for at in self.given_back if at > self.now - 1.0]
        assert len(late) <= RETURNS_PER_SECOND + 2, late


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


class Holding:
    """A machine that holds, and what it gave back."""

    def __init__(self, **broker: float) -> None:
        self.machine = Machine(BrokerConfig(max_held_bytes=MOST, **broker), HandOverConfig(), jitter=lambda: 0.5)
        self.now = 100.0
        self.tags = count(1)
        self.actions: list[object] = []

    def jobs(
        self, user: str, *numbers: int, size: int = 10_000, properties: bytes = b"", redelivered: bool = False
    ) -> None:
        for number in numbers:
            if not self.machine.settlement.consuming:
                return
            delivery = Delivery(1, next(self.tags), b"%d " % number + bytes(size), properties, redelivered, "", "")
            self.machine.job(user, delivery, digest(delivery.body, None), self.now)
            self.actions += self.machine.take_actions(self.now)

    def held(self, user: str) -> list[int]:
        return sorted(int(held.delivery.body.split()[0]) for held in self.machine.users[user].held)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.machine.next_deadline()) <= end:
            self.now = max(self.now, deadline)
            self.machine.time_passed(self.now)
            self.actions += self.machine.take_actions(self.now)
        self.now = end

    def given_back(self) -> list[int]:
        return [action.delivery.tag for action in self.actions if isinstance(action, GiveBack)]


def test_one_user_keeps_the_oldest_of_a_quarter_and_hides_nobody() -> None:
    holding = Holding()
    holding.jobs("bob", *range(1, 1001))
    held = holding.held("bob")
    assert held == list(range(1, len(held) + 1)), "the oldest are kept"
    assert MOST / 8 < holding.machine.users["bob"].held_bytes <= MOST / 2
    assert holding.machine.settlement.bytes <= MOST / 2 + 10_010
    assert not [action for action in holding.actions if isinstance(action, CancelConsumer)]
    assert next(action.fault for action in holding.actions if isinstance(action, Report)) is Fault.OVER_SHARE
    holding.jobs("alice", 1)
    assert holding.held("alice") == [1]


def test_surplus_goes_back_twenty_a_second_oldest_first() -> None:
    holding = Holding()
    holding.jobs("bob", *range(1, 1001))
    before = len(holding.given_back())
    holding.wait(10.0)
    gone = holding.given_back()[before:]
    assert 190 <= len(gone) <= 205
    assert all(not action.delivery.body for action in holding.actions if isinstance(action, GiveBack))


def test_nothing_is_held_longer_than_max_hold() -> None:
    holding = Holding(max_hold=20.0)
    holding.jobs("bob", *range(1, 1001))
    holding.wait(21.5)
    assert len(holding.given_back()) == 1000
    assert holding.machine.settlement.deliveries == 0


def test_ten_users_of_a_quarter_each_end_at_the_bound() -> None:
    """Then the consumer is cancelled, and what each of them holds is the oldest."""
    holding = Holding()
    for user in range(10):
        holding.jobs(f"user{user}", *range(1, 26))
    assert not holding.machine.settlement.consuming
    assert holding.machine.settlement.bytes < MOST + 10_010
    assert all(user.held_bytes <= MOST / 4 for user in holding.machine.users.values())


def test_job_that_the_broker_would_drop_does_not_go_back() -> None:
    worn_out = Properties({}, [(b"x-delivery-count", b"l" + (10).to_bytes(8, "big"))]).encode()
    holding = Holding()
    holding.jobs("bob", *range(1, 70), properties=worn_out, redelivered=True)
    holding.wait(5.0)
    assert holding.given_back() == []


def test_large_job_that_is_alone_is_kept() -> None:
    holding = Holding()
    holding.jobs("bob", 1, size=MOST // 3)
    holding.jobs("alice", *range(1, 40))
    assert holding.held("bob") == [1]


def test_user_with_an_executor_gets_the_surplus_one_after_the_other() -> None:
    """Each that has arrived makes the next one go back, far faster than twenty a second."""
    holding = Holding()
    holding.machine.publishable(on=True)
    holding.jobs("bob", *range(1, 1001))
    holding.machine.answered("bob", Running(ID, "bob", 1000, 7, 1.0, 5), 1, holding.now)
    bob = holding.machine.users["bob"]
    bob.keep([])  # as if all were handed over
    bob.state = State.READY
    holding.actions += holding.machine.take_actions(holding.now)
    while bob.surplus:
        before = bob.surplus
        holding.jobs("bob", 2000 + before, size=10)
        bob.keep([])
        assert bob.surplus < before
        holding.now += 0.001
    assert len(holding.given_back()) > 900
    assert holding.now < 102.0
