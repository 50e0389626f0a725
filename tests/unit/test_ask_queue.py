"""Whose turn it is: a model that knows who waits and who is asked for, and what holds whatever comes in which order.

The helper of the model has a place or has none, answers in any order, and hangs as it likes.
"""

from collections import deque
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker_listener.ask_queue import (
    MAX_ASKED,
    MAX_ASKED_AGAIN,
    MAX_FRESH,
    MAX_NEW,
    OTHERS_EVERY,
    REPEATS_PER_SECOND,
    AskQueue,
)
from broker_listener.user import User

KINDS = ("known", "new", "turned back", "unknown", "hung", "known, hung")
NEW = ("new", "turned back")
AGAIN = ("unknown", "hung", "known, hung")


def user_of(kind: str, number: int) -> User:
    user = User(f"{kind} {number}")
    user.hung = "hung" in kind
    user.turned_back = int(kind == "turned back")
    if kind == "unknown":
        user.unknown_since = 0.0
    return user


class Queue(RuleBasedStateMachine):
    """A queue, its clock, who waits and who is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = AskQueue()
        self.now = 100.0
        self.number = 0
        self.kinds: dict[User, str] = {}
        self.waiting: dict[str, dict[User, int]] = {kind: {} for kind in KINDS}
        """With the number of others' turns by which a new user's must have come."""
        self.turns = 0
        """Of those who were not started before."""
        self.known_in_a_row = 0
        self.again = deque([False] * 8, maxlen=8)
        """Of the last turns of who was not started before: whether it was taken from a new user by a repeat."""
        self.asked: dict[User, None] = {}

    @rule(kind=st.sampled_from(KINDS), count=st.sampled_from([1, 3, 40]))
    def users_come(self, kind: str, count: int) -> None:
        for _ in range(count):
            self.number += 1
            user = user_of(kind, self.number)
            self.kinds[user] = kind
            # At least one turn in four is each lane's, every second of these its oldest user's.
            self.waiting[kind][user] = self.turns + 4 * 2 * (len(self.waiting[kind]) + 2)
            self.queue.join(user, known=kind.startswith("known"))
            self.ask()

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.05, 1.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while self.queue.next_at() <= end:
            self.now = max(self.now, self.queue.next_at())
            assert self.ask(), "it is woken for somebody"
        self.now = end

    @precondition(lambda self: self.asked)
    @rule(
        chance=st.randoms(use_true_random=False),
        no_room_for=st.sampled_from([0.0] * 3 + [0.02, 0.1, 1.0]),
        count=st.sampled_from([1, 5, 40]),
    )
    def the_helper_answers(self, chance: Random, no_room_for: float, count: int) -> None:
        for _ in range(min(count, len(self.asked))):
            user = chance.choice(list(self.asked))
            del self.asked[user]
            crowded = self.queue.answered(user, no_room_for, self.now)
            assert crowded == any(self.kinds[other] != "known" for other in self.asked)
            self.ask()

    @rule()
    def an_executor_ends(self) -> None:
        self.queue.executor_ended()
        self.ask()

    def ask(self) -> int:
        count = 0
        while self.note_turn(user := self.queue.take(self.now)):
            self.asked[user] = None
            count += 1
        return count

    def note_turn(self, user: User | None) -> bool:
        if user is None:
            return False
        kind = self.kinds[user]
        others_wait = any(self.waiting[kind] for kind in NEW)
        turn_by = self.waiting[kind].pop(user)  # KeyError: asked for twice, or does not wait
        if kind == "known":
            self.known_in_a_row = (
                self.known_in_a_row + 1 if others_wait and self.queue._others.has_room(self.now) else 0
            )
            assert self.known_in_a_row < OTHERS_EVERY, "new users have a turn though known ones wait"
            return True
        assert not self.waiting["known"] or self.queue._known_in_a_row == 0
        self.known_in_a_row = 0
        self.turns += 1
        assert kind in AGAIN or self.turns <= turn_by, "nobody who is new waits for ever while others are asked for"
        self.again.append(kind in AGAIN and others_wait)
        assert sum(self.again) <= 2, "of eight turns two are of users who are asked for again, while new ones wait"
        return True

    @invariant()
    def what_is_under_way_is_bounded(self) -> None:
        kinds = [self.kinds[user] for user in self.asked]
        assert len(kinds) <= MAX_ASKED
        assert len(kinds) - kinds.count("known") <= MAX_NEW
        assert kinds.count("hung") + kinds.count("known, hung") <= MAX_ASKED_AGAIN

    @invariant()
    def who_waits_is_counted(self) -> None:
        assert len(self.queue) == sum(map(len, self.waiting.values()))

    def teardown(self) -> None:
        """Let the helper answer and have room: then everybody is asked for, whatever was learned before."""
        for _ in range(100_000):
            while self.asked:
                self.queue.answered(self.asked.popitem()[0], 0.0, self.now)
            self.ask()
            if not any(self.waiting.values()):
                return
            if not self.asked:
                assert self.queue.next_at() < float("inf"), f"they wait for nothing: {self.waiting}"
                self.now = max(self.now, self.queue.next_at())
        raise AssertionError(f"never asked for: {self.waiting}")


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


def asked_in(queue: AskQueue, seconds: float) -> list[User]:
    """Return who is asked for by a helper that answers at once."""
    now, asked = 100.0, []
    while now <= 100.0 + seconds:
        while (user := queue.take(now)) is not None:
            asked.append(user)
            queue.answered(user, 0.0, now)
        now = max(now + 0.001, queue.next_at())
    return asked


def test_names_asked_for_again_leave_room_when_alone() -> None:
    """So many a second, so what the helper allows is there for whoever comes next."""
    queue = AskQueue()
    for number in range(1000):
        queue.join(user_of("unknown", number), known=False)
    assert len(asked_in(queue, 10.0)) == pytest.approx(10 * REPEATS_PER_SECOND, abs=3)


def test_known_user_goes_before_six_thousand_new_names() -> None:
    queue = AskQueue()
    for number in range(6000):
        queue.join(user_of("new", number), known=False)
    known = user_of("known", 1)
    queue.join(known, known=True)
    assert queue.take(0.0) is known


def test_newest_user_is_second_behind_six_thousand_new_names() -> None:
    queue = AskQueue()
    for number in range(6001):
        queue.join(user_of("new", number), known=False)
    assert [queue.take(0.0).name for _ in range(4)] == ["new 0", "new 6000", "new 1", "new 5999"]


def test_refusals_for_want_of_room_leave_few_under_way() -> None:
    """The helper's places are for those whom it starts: look-ups of names that nobody has take few of them."""
    queue = AskQueue()
    for number in range(6000):
        queue.join(user_of("new", number), known=False)
    asked = [queue.take(100.0) for _ in range(MAX_FRESH)]
    assert queue.take(100.0) is None
    for user in asked:
        queue.answered(user, 0.1, 100.01)
    assert queue.next_at() == pytest.approx(100.11)
    assert [queue.take(100.2) is not None for _ in range(3)] == [True, True, False]
