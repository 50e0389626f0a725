"""What the machine believes of executors, against a helper whose words are lost, late and overtaken.

The model is the helper's truth, the channel that keeps the order of what it says, and the client, which numbers what it
asks and hears. An answer may be taken up by the machine later than what was heard after it, since it ends a task of
the loop and a notice does not. The model also asks while a list is on its way, which the client of today does not.
"""

from collections import deque
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker_listener.actions import Ask
from broker_listener.config import BrokerConfig, HandOverConfig
from broker_listener.consuming import Delivery
from broker_listener.hand_over import Machine
from broker_listener.pacing import digest
from protocol.messages import ExecutorEntry, RequestId, Running, Started

USERS = ("alice", "bob")
ID = RequestId("1")


class Reply(NamedTuple):
    """An answer to ``ensure``, on its way."""

    user: str
    pid: int
    started: bool


class Notice(NamedTuple):
    """The end of an executor, on its way."""

    user: str
    pid: int


class Page(NamedTuple):
    """One user's page of a list, on its way; ``pid`` is None where there is no executor."""

    user: str
    pid: int | None


class Words(RuleBasedStateMachine):
    """Two users whose executors start, end and get pids again, however soon."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(BrokerConfig(), HandOverConfig(max_start_attempts=10**6), jitter=lambda: 0.5)
        self.now = 0.0
        self.tag = 0
        self.truth: dict[str, int] = {}
        self.asked: list[str] = []
        self.channel: deque[Reply | Notice | Page] = deque()
        self.passed = 0
        self.list_asked: int | None = None
        self.pages: dict[str, int] = {}
        self.to_come: deque[str] = deque()
        self.answers: list[tuple[Reply, int]] = []
        self.connected = False
        self.connect()

    @rule(user=st.sampled_from(USERS))
    def a_job_arrives(self, user: str) -> None:
        self.tag += 1
        delivery = Delivery(1, self.tag, b"%d" % self.tag, b"\0\0", False, "", "")
        self.machine.job(user, delivery, digest(delivery.body, None), self.now)
        self.act()

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), pid=st.integers(1, 2))
    def the_helper_answers(self, data: st.DataObject, pid: int) -> None:
        """Start an executor, unless there is one."""
        user = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        started = user not in self.truth
        self.truth.setdefault(user, pid)
        self.channel.append(Reply(user, self.truth[user], started))

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def an_executor_ends(self, data: st.DataObject) -> None:
        """Tell of it, unless nobody is connected: then the notice is lost."""
        user = data.draw(st.sampled_from(sorted(self.truth)))
        self.channel.append(Notice(user, self.truth.pop(user)))

    @precondition(lambda self: self.to_come)
    @rule()
    def the_helper_gives_a_page(self) -> None:
        user = self.to_come.popleft()
        self.channel.append(Page(user, self.truth.get(user)))

    @precondition(lambda self: self.channel)
    @rule(words=st.integers(1, 4), at_once=st.booleans())
    def words_are_heard(self, words: int, *, at_once: bool) -> None:
        """Hear some; their answers are taken up at once, or later."""
        for _ in range(min(words, len(self.channel))):
            self.a_word_is_heard()
            if at_once:
                while self.answers:
                    self.take_up(*self.answers.pop(0))

    def a_word_is_heard(self) -> None:
        self.passed += 1
        word = self.channel.popleft()
        if isinstance(word, Reply):
            self.answers.append((word, self.passed))
        elif isinstance(word, Notice):
            self.machine.exited(word.user, word.pid, self.passed, self.now)
            self.act()
        else:
            if word.pid is not None:
                self.pages[word.user] = word.pid
            if word.user == USERS[-1]:
                self.list_is_complete()

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def an_answer_is_taken_up(self, data: st.DataObject) -> None:
        self.take_up(*self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1))))

    def take_up(self, word: Reply, heard: int) -> None:
        kind = Started if word.started else Running
        self.machine.answered(word.user, kind(ID, word.user, 1000, word.pid, 1.0, None), heard, self.now)
        self.act()

    @rule(lose=st.booleans(), lists_at_once=st.booleans())
    def the_connection_is_lost(self, *, lose: bool, lists_at_once: bool) -> None:
        """Lose what is on its way, and be asked for a list first on the next one; what was heard was heard."""
        while self.channel and not lose:
            self.a_word_is_heard()
        self.channel.clear()
        without = [
            user for user in USERS if self.is_asking(user) and not any(one.user == user for one, _ in self.answers)
        ]
        self.asked.clear()
        for user in without:
            self.machine.answered(user, None, 0, self.now)
        self.connect()
        while lists_at_once and self.to_come:
            self.the_helper_gives_a_page()
        self.act()

    @rule(seconds=st.sampled_from([0.05, 0.3, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.machine.time_passed(self.now)
        self.act()

    def connect(self) -> None:
        self.connected = False
        self.list_asked, self.pages, self.to_come = self.passed, {}, deque(USERS)
        self.passed += 1

    def list_is_complete(self) -> None:
        assert self.list_asked is not None
        entries = {user: ExecutorEntry(user, user, 1000, pid, 1.0, None) for user, pid in self.pages.items()}
        self.connected = True
        self.machine.listed(entries, self.list_asked, self.now)
        self.act()

    def is_asking(self, user: str) -> bool:
        return user in self.machine.users and self.machine.users[user].asking

    def act(self) -> None:
        for action in self.machine.take_actions(self.now):
            if isinstance(action, Ask):
                self.passed += 1
                self.asked.append(action.user)

    @invariant()
    def when_all_is_heard_what_is_believed_is_true(self) -> None:
        """Believe in no executor that is none; of one that runs it may not be known yet."""
        if self.connected and not (self.channel or self.answers):
            for user in self.machine.users.values():
                if user.executor is not None:
                    assert user.executor.pid == self.truth.get(user.name)

    @invariant()
    def who_was_answered_last_is_believed_to_run(self) -> None:
        """Whoever is believed to have none, and holds jobs, will be asked for again."""
        for user in self.machine.users.values():
            if user.held and user.executor is None:
                assert user.asking or user.wake_at < float("inf")


TestWords = Words.TestCase
TestWords.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
