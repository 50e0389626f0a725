"""The per-user machine against everything that can happen in any order, and what must hold whatever does.

The model is a broker's: which deliveries are unsettled, which messages are without an answer. It knows nothing of
states or pauses.
"""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker_listener.actions import (
    Ack,
    Ask,
    CancelConsumer,
    GiveBack,
    HandOver,
    Park,
    PutBack,
    ResumeConsumer,
    Tell,
    Unwatch,
    Watch,
)
from broker_listener.answers import NotHere, WhyNotHere
from broker_listener.config import BrokerConfig, HandOverConfig
from broker_listener.confirms import Outcome
from broker_listener.consuming import Delivery
from broker_listener.hand_over import Machine
from broker_listener.host_messages import UserState
from broker_listener.pacing import digest
from broker_listener.probes import waits
from broker_listener.properties import Properties
from broker_listener.requeue import may_give_back, redelivered_too_often
from broker_listener.transitions import State
from protocol.messages import ExecutorEntry, Failed, FailedReason, Refused, RefusedReason, RequestId, Running, Started

USERS = ("alice", "bob", "eve")
ID = RequestId("1")
PREFETCH = 30
MAX_DEATHS = 3
OWN = ("name", "state", "executor", "was_ready", "starts", "returned", "under_way", "reason", "until", "wake_at")


class Listener(RuleBasedStateMachine):
    """Drives a machine with small bounds through anything that broker, helper, kernel and publishers may do."""

    requeues = False
    alone = False
    counts = True
    """Whether the queue counts redeliveries, as a quorum queue does."""
    max_hold = 60.0
    max_held_bytes = 2**20

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(
            BrokerConfig(
                prefetch=PREFETCH, max_unconfirmed=4, max_hold=self.max_hold, max_held_bytes=self.max_held_bytes
            ),
            HandOverConfig(max_start_attempts=MAX_DEATHS, unknown_grace=5.0, start_timeout=20.0),
            (lambda delivery: delivery.tag % 3 != 0 and may_give_back(delivery)) if self.requeues else None,
            jitter=lambda: 0.5,
            elsewhere=None if self.alone else self.is_elsewhere,
        )
        self.elsewhere: set[str] = set()
        self.told: dict[str, UserState] = dict.fromkeys(USERS, UserState.GONE)
        self.now = 0.0
        self.generation = 1
        self.tag = 0
        self.job_number = 0
        self.user_of: dict[bytes, str] = {}
        self.unsettled: dict[int, Delivery] = {}
        self.without_answer: dict[int, tuple[Delivery, int]] = {}
        self.confirmed: set[tuple[int, int]] = set()
        self.handed_first: dict[str, list[int]] = {user: [] for user in USERS}
        self.circulating: list[bytes] = []
        self.asked: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        """Ends of executors by user; a user whose jobs are parked for them has had enough."""
        self.watched: set[str] = set()
        self.handed_over: set[int] = set()
        self.parking: set[int] = set()
        self.queue: deque[bytes] = deque()
        self.redeliveries: Counter[bytes] = Counter()
        self.consuming = True
        self.pid = 10
        self.passed = 0

    # What happens

    @rule(user=st.sampled_from(USERS), size=st.integers(1, 3))
    def jobs_arrive(self, user: str, size: int) -> None:
        for _ in range(size):
            self.job_number += 1
            body = b"%d" % self.job_number
            self.user_of[body] = user
            self.queue.append(body)
        self.deliver()

    @precondition(lambda self: self.circulating)
    @rule(data=st.data())
    def a_job_comes_back(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.circulating) - 1))
        self.queue.append(self.circulating.pop(place))
        self.deliver()

    @rule()
    def junk_arrives(self) -> None:
        self.queue.append(b"junk")
        self.deliver()

    @precondition(lambda self: self.without_answer)
    @rule(data=st.data(), outcome=st.sampled_from([Outcome.CONFIRMED] * 3 + list(Outcome)))
    def the_broker_answers(self, data: st.DataObject, outcome: Outcome) -> None:
        token = data.draw(st.sampled_from(sorted(self.without_answer)))
        delivery, generation = self.without_answer.pop(token)
        if outcome is Outcome.CONFIRMED:
            self.confirmed.add((generation, delivery.tag))
            if token not in self.parking:
                self.redeliveries[delivery.body] = 0
                (self.circulating if delivery.body in self.user_of else self.queue).append(delivery.body)
        self.machine.published(token, outcome, self.now)
        self.act()

    @rule(on=st.booleans())
    def publishing_is_possible_or_not(self, *, on: bool) -> None:
        self.machine.publishable(on=on)
        self.act()

    @rule()
    def the_channel_is_lost(self) -> None:
        lost, self.unsettled = self.unsettled, {}
        self.generation += 1
        self.machine.deliveries_lost(self.now)
        self.act()
        self.queue.extendleft(delivery.body for delivery in reversed(lost.values()))
        self.redeliveries.update(delivery.body for delivery in lost.values())
        self.deliver()

    @precondition(lambda self: any(self.asked.values()))
    @rule(data=st.data())
    def the_helper_answers(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(sorted(user for user, count in self.asked.items() if count)))
        self.pid += 1
        answers = [
            None,
            Started(ID, user, 1000, self.pid, 1.0, 5),
            Running(ID, user, 1000, self.pid, 1.0, None),
            Running(ID, user, 1000, self.pid - 1, 1.0, 5),
            *(Refused(ID, reason) for reason in (RefusedReason.UNKNOWN_USER, RefusedReason.DENIED_USER)),
            *(
                Failed(ID, reason, 0.5)
                for reason in (FailedReason.SPAWN_FAILED, FailedReason.PREPARE_FAILED, FailedReason.DRAINING)
            ),
            Failed(ID, FailedReason.LOOKUP_TIMEOUT, 2.0),
            *(() if self.alone else map(NotHere, WhyNotHere)),
        ]
        self.asked[user] -= 1
        answer = data.draw(st.sampled_from(answers))
        with self.nobody_else_than(user):
            self.machine.answered(user, answer, self.number(), self.now)
        self.act()

    @rule(user=st.sampled_from(USERS), back=st.integers(0, 2))
    def an_executor_ends(self, user: str, back: int) -> None:
        self.ends[user] += 1
        with self.nobody_else_than(user):
            self.machine.exited(user, self.pid - back, self.number(), self.now)
        self.act()

    @rule(users=st.sets(st.sampled_from(USERS)))
    def the_helper_lists(self, users: set[str]) -> None:
        entries = {user: ExecutorEntry(user, user, 1000, self.pid, 1.0, 5) for user in users}
        self.machine.listed(entries, self.number(), self.now)
        self.act()

    @rule(user=st.sampled_from(USERS))
    def an_executor_connects(self, user: str) -> None:
        with self.nobody_else_than(user):
            self.machine.connected(user, self.now)
        self.act()

    @precondition(lambda self: not self.alone)
    @rule(user=st.sampled_from(USERS))
    def an_executor_elsewhere_is_ready_or_none_is_any_more(self, user: str) -> None:
        self.elsewhere ^= {user}
        with self.nobody_else_than(user):
            self.machine.elsewhere(user, self.now)
        self.act()

    @precondition(lambda self: not self.alone)
    @rule(user=st.sampled_from(USERS))
    def another_host_wants_an_executor_here(self, user: str) -> None:
        with self.nobody_else_than(user):
            self.machine.wanted(user, self.now)
        self.act()

    @rule(seconds=st.sampled_from([0.005, 0.05, 0.25, 1.0, 15.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(10_000):
            deadline = self.machine.next_deadline()
            if deadline > end:
                break
            self.now = max(self.now, deadline)
            self.machine.time_passed(self.now)
            self.act()
        else:
            raise AssertionError("the machine wants to be woken for ever")
        self.now = end

    def number(self) -> int:
        self.passed += 1
        return self.passed

    # What must hold

    def is_elsewhere(self, user: str) -> bool:
        return user in self.elsewhere

    def deliver(self) -> None:
        """Deliver what the queue has, while there is a consumer and its prefetch is not used up."""
        while self.queue and self.consuming and len(self.unsettled) < PREFETCH:
            body = self.queue.popleft()
            self.tag += 1
            if self.tag % 5 == 0:  # another consumer had it ten times before
                self.redeliveries[body] = max(self.redeliveries[body], 10)
            redelivered = self.redeliveries[body] if self.counts else 0
            properties = counted(redelivered or (100 if self.tag % 3 == 0 else 0))
            delivery = Delivery(self.generation, self.tag, body, properties, redelivered > 0, "", "")
            self.unsettled[delivery.tag] = delivery
            if body == b"junk":
                with self.nobody_else_than(""):
                    self.machine.no_job(delivery, "not_json", "", self.now)
            else:
                with self.nobody_else_than(user := self.user_of[body]):
                    self.machine.job(user, delivery, digest(body, None), self.now)
            self.act()
        self.act()

    @contextmanager
    def nobody_else_than(self, user: str) -> Iterator[None]:
        """See that it changes no other user's state, jobs or time of the next look, but by a fault of the host."""
        before, at_fault = self.others_of(user), self.machine.host.faults(self.now)
        yield
        if not (at_fault or self.machine.host.faults(self.now)):
            assert before == self.others_of(user), "no user's events change another's state"

    def others_of(self, user: str) -> list[list[object]]:
        others = [other for other in self.machine._users.values() if other.name != user]
        return [[*other.held, *(copy(getattr(other, name)) for name in OWN)] for other in others]

    def act(self) -> None:
        for action in self.machine.take_actions(self.now):
            match action:
                case HandOver() | Park() | PutBack():
                    self.publish(action)
                case Ack() | GiveBack():
                    self.settle(action)
                case Ask():
                    self.asked[action.user] += 1
                    assert self.asked[action.user] == 1, "one request a user is under way"
                case Watch() | Unwatch():
                    assert (action.user in self.watched) == isinstance(action, Unwatch)
                    self.watched ^= {action.user}
                case Tell():
                    assert self.told[action.user] is not action.state, "only what has changed is told"
                    self.told[action.user] = action.state
                case CancelConsumer() | ResumeConsumer():
                    assert self.consuming == isinstance(action, CancelConsumer)
                    self.consuming = not self.consuming

    def publish(self, action: HandOver | Park | PutBack) -> None:
        token, delivery = action.token, action.delivery
        assert self.unsettled.get(delivery.tag) is delivery, "only what is held is published"
        under_way = [other for other, _ in self.without_answer.values() if other is delivery]
        assert not under_way, "a delivery is under way at most once"
        assert token not in self.without_answer
        self.without_answer[token] = (delivery, delivery.generation)
        if isinstance(action, PutBack):
            assert redelivered_too_often(delivery), "nothing else loses its place in the queue"
        if isinstance(action, Park):
            self.parking.add(token)
            if action.reason == "start_failed":
                assert self.ends[self.user_of[delivery.body]] >= MAX_DEATHS, "nothing else counts against a user"
        if isinstance(action, HandOver):
            self.note_order(delivery)
            self.handed_over.add(token)

    def settle(self, action: Ack | GiveBack) -> None:
        delivery = self.unsettled.pop(action.delivery.tag, None)
        assert delivery is not None, "a delivery is settled at most once"
        assert delivery.generation == action.delivery.generation == self.generation
        if isinstance(action, Ack):
            assert (delivery.generation, delivery.tag) in self.confirmed, "acked after a confirm"
        else:
            assert not redelivered_too_often(delivery), "the broker would drop it"
            self.redeliveries[delivery.body] += 1
        if isinstance(action, GiveBack):
            (self.circulating if delivery.body in self.user_of else self.queue).append(delivery.body)

    def note_order(self, delivery: Delivery) -> None:
        self.handed_first[self.user_of[delivery.body]].append(int(delivery.body))

    @invariant()
    def others_know_who_has_an_executor_here(self) -> None:
        for user in () if self.alone else self.machine.users.values():
            has = UserState.STARTING if user.executor is not None else UserState.GONE
            served = user.state in (State.PROBING, State.READY)
            assert self.told[user.name] is (UserState.READY if served else has)
            assert user.elsewhere == (user.name in self.elsewhere)

    @invariant()
    def who_waits_for_a_turn_is_in_line(self) -> None:
        """And the line is looked at: while the host is at fault at the next turn, and never after it is well."""
        probes = self.machine._probes
        for user in self.machine.users.values():
            assert not waits(user) or user in probes._new or user in probes._struck
        if self.machine.host.start_fault(self.now) is None:
            assert not any(waits(user) for user in self.machine.users.values())
        assert len(probes) <= len(USERS)

    @invariant()
    def nothing_is_held_of_a_user_who_is_ready_elsewhere(self) -> None:
        for user in self.machine.users.values():
            if user.elsewhere and not user.returned and not user.failures and self.machine.settlement.has_room:
                assert not user.held

    @invariant()
    def what_is_held_is_counted_exactly(self) -> None:
        settlement = self.machine.settlement
        assert settlement.deliveries == len(self.unsettled)
        surplus = [entry for line in self.machine._shares._surplus.values() for entry in line]
        bare = {leaving.delivery.tag for _, _, leaving in settlement._to_park._bare}
        without_body = bare | {entry.delivery.tag for entry in surplus}
        sizes = {tag: len(delivery.body) + len(delivery.properties) for tag, delivery in self.unsettled.items()}
        assert settlement.bytes == sum(size for tag, size in sizes.items() if tag not in without_body)
        assert [sizes[entry.delivery.tag] for entry in surplus] == [entry.size for entry in surplus]
        held = sum(len(user.held) + user.surplus for user in self.machine._users.values())
        under_way = sum(delivery.generation == self.generation for delivery, _ in self.without_answer.values())
        assert held + settlement.aside + under_way == len(self.unsettled), "no delivery is forgotten"
        assert settlement.deliveries <= PREFETCH
        assert settlement.consuming == self.consuming

    @invariant()
    def nothing_is_held_that_was_redelivered_too_often(self) -> None:
        """See that it is on its way to its queue or handed over, and waits for nothing else."""
        held = [held.delivery for user in self.machine._users.values() for held in user.held]
        held += [leaving.delivery for _, _, leaving in self.machine.settlement._to_park._waiting]
        assert not [delivery for delivery in held if redelivered_too_often(delivery)]

    @invariant()
    def each_user_s_counts_are_those_of_its_jobs(self) -> None:
        for user in self.machine._users.values():
            assert user.returned == sum(held.returned for held in user.held)
            assert user.held_bytes == sum(held.size for held in user.held)
            assert user.surplus == len(self.machine._shares._surplus.get(user, ()))
            assert user.under_way >= 0
            assert 0 <= user.grace_jobs <= len(user.held)
            assert user.watched == (user.name in self.watched)

    @invariant()
    def the_jobs_of_unknown_users_are_counted_exactly(self) -> None:
        graces = [user.grace_jobs for user in self.machine._users.values()]
        assert self.machine._answers.grace.jobs == sum(graces)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.machine._users) <= len(USERS)
        assert len(self.machine._timers) <= 64 + 2 * len(USERS)
        assert self.machine.settlement.under_way == len(self.without_answer)
        assert len(self.handed_over & self.without_answer.keys()) <= 4

    @invariant()
    def whoever_holds_a_job_is_waiting_for_something(self) -> None:
        for user in self.machine._users.values():
            if user.held:
                assert user.asking or user.queued or user.under_way or user.wake_at < float("inf")

    def teardown(self) -> None:
        """Let all be well at last: then every job settles, by a confirm or by going back."""
        self.machine.publishable(on=True)
        for _ in range(200):
            self.act()
            while self.without_answer:
                token = next(iter(self.without_answer))
                delivery, generation = self.without_answer.pop(token)
                self.confirmed.add((generation, delivery.tag))
                self.machine.published(token, Outcome.CONFIRMED, self.now)
                self.act()
            for user in [user for user, count in self.asked.items() if count]:
                self.asked[user] -= 1
                self.pid += 1
                self.machine.answered(user, Running(ID, user, 1000, self.pid, 1.0, 5), self.number(), self.now)
                self.act()
            self.deliver()
            if not self.unsettled and not self.queue:
                return
            self.now = max(self.now, min(self.machine.next_deadline(), self.now + 100))
            self.machine.time_passed(self.now)
        raise AssertionError(f"held for ever: {self.unsettled}")


class LoneListener(Listener):
    """One that shares its queue with no other host: who has no turn waits in line."""

    alone = True


def counted(redeliveries: int) -> bytes:
    """Return the properties of a message with this count; 0 is none."""
    headers = [(b"x-delivery-count", b"l" + redeliveries.to_bytes(8, "big"))] if redeliveries else None
    return Properties({}, headers).encode()


class RequeueingListener(Listener):
    """The same in mode requeue."""

    requeues = True


class SmallListener(Listener):
    """One in which a few jobs are more than a user's share."""

    max_held_bytes = 24

    def others_of(self, user: str) -> list[list[object]]:
        """Leave out what gives way to an arrival: the newest jobs of a user who holds too much."""
        others = [other for other in self.machine._users.values() if other.name != user]
        return [[getattr(other, name) for name in OWN if name != "returned"] for other in others]


class PatientListener(Listener):
    """One that has nothing go to the queue's end: what it held too long, or what was redelivered too often."""

    counts = False
    max_hold = 1700.0


class FirstHandOvers(RuleBasedStateMachine):
    """A user whose helper, broker and executor come and go, but whose jobs the broker delivers in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.listener = PatientListener()
        self.listener.machine.publishable(on=True)

    @rule(user=st.sampled_from(USERS), size=st.integers(1, 3))
    def jobs_arrive(self, user: str, size: int) -> None:
        self.listener.jobs_arrive(user, size)

    @precondition(lambda self: self.listener.circulating)
    @rule(data=st.data())
    def a_job_comes_back(self, data: st.DataObject) -> None:
        self.listener.a_job_comes_back(data)

    @precondition(lambda self: self.listener.without_answer)
    @rule(data=st.data(), outcome=st.sampled_from([Outcome.CONFIRMED] * 3 + list(Outcome)))
    def the_broker_answers(self, data: st.DataObject, outcome: Outcome) -> None:
        self.listener.the_broker_answers(data, outcome)

    @rule()
    def the_channel_is_lost(self) -> None:
        self.listener.the_channel_is_lost()

    @precondition(lambda self: any(self.listener.asked.values()))
    @rule(data=st.data())
    def the_helper_answers(self, data: st.DataObject) -> None:
        self.listener.the_helper_answers(data)

    @rule(seconds=st.sampled_from([0.005, 0.05, 0.25, 1.0, 15.0]))
    def time_passes(self, seconds: float) -> None:
        self.listener.time_passes(seconds)

    @invariant()
    def first_hand_overs_of_a_user_keep_first_seen_order(self) -> None:
        for numbers in self.listener.handed_first.values():
            firsts = list(dict.fromkeys(numbers))
            assert firsts == sorted(firsts)


SETTINGS = settings(max_examples=40, stateful_step_count=50, deadline=None)
TestListener = Listener.TestCase
TestLoneListener = LoneListener.TestCase
TestRequeueingListener = RequeueingListener.TestCase
TestSmallListener = SmallListener.TestCase
TestFirstHandOvers = FirstHandOvers.TestCase
TestLoneListener.settings = TestListener.settings = TestRequeueingListener.settings = TestFirstHandOvers.settings = (
    SETTINGS
)
TestSmallListener.settings = SETTINGS
