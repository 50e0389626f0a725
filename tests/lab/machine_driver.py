"""The per-user machine, driven by hand: its clock, a broker that confirms at once, and what the helper says.

Time is a number here and nothing waits.
"""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final, TypeVar

from broker_listener.actions import Ack, Action, Fault, GiveBack, HandOver, Park, PutBack, Report, Tell
from broker_listener.answers import Answer
from broker_listener.config import BrokerConfig, HandOverConfig
from broker_listener.confirms import Outcome
from broker_listener.consuming import Delivery
from broker_listener.hand_over import Machine
from broker_listener.host_messages import UserState
from broker_listener.pacing import digest
from broker_listener.started_before import StartedBefore
from broker_listener.transitions import State
from protocol.messages import ExecutorEntry, RequestId, Running, Started

ID: Final = RequestId("1")
A = TypeVar("A", bound=Action)


class Listener:
    """A machine, its clock, and a broker that confirms at once unless it is told otherwise."""

    def __init__(
        self,
        broker: Mapping[str, Any] | None = None,
        give_back: Callable[[Delivery], bool] | None = None,
        **hand_over: Any,
    ) -> None:
        self.started_before = StartedBefore()
        self.machine = Machine(
            BrokerConfig(**(broker or {})),
            HandOverConfig(**hand_over),
            give_back,
            jitter=lambda: 0.5,
            started=self.started_before,
        )
        self.now = 100.0
        self.tags = count(1)
        self.numbers = count(1)
        """Of what passes between listener and helper."""
        self.outcome: Outcome | None = Outcome.CONFIRMED
        self.actions: list[Action] = []
        self.under_way: list[HandOver | Park | PutBack] = []
        self.machine.publishable(on=True)

    def job(
        self,
        user: str,
        body: str,
        size: int = 0,
        properties: bytes = b"\0\0",
        *,
        handed: bool = False,
        redelivered: bool = False,
    ) -> Delivery:
        delivery = Delivery(1, next(self.tags), body.encode().ljust(size), properties, redelivered, "jobs", "new-work")
        self.machine.job(user, delivery, digest(delivery.body, None), self.now, handed=handed)
        self.collect()
        return delivery

    def jobs(self, user: str, *bodies: str) -> None:
        for body in bodies:
            self.job(user, body)

    def collect(self) -> None:
        while actions := self.machine.take_actions(self.now):
            self.actions += actions
            for action in actions:
                if isinstance(action, HandOver | Park | PutBack):
                    self.under_way.append(action)
                    if self.outcome is not None:
                        self.answer(self.outcome)

    def answer(self, outcome: Outcome) -> None:
        """Give the broker's answer to the oldest message that has none."""
        self.machine.published(self.under_way.pop(0).token, outcome, self.now)
        self.collect()

    def helper(self, user: str, answer: Answer) -> None:
        self.machine.answered(user, answer, next(self.numbers), self.now)
        self.collect()

    def started(self, user: str, pid: int = 7, cgroup: int | None = 5) -> None:
        self.helper(user, Started(ID, user, 1000, pid, 1.0, cgroup))

    def running(self, user: str, pid: int = 7) -> None:
        self.helper(user, Running(ID, user, 1000, pid, 1.0, 5))

    def connected(self, user: str) -> None:
        self.machine.connected(user, self.now)
        self.collect()

    def exited(self, user: str, pid: int = 7) -> None:
        self.machine.exited(user, pid, next(self.numbers), self.now)
        self.collect()

    def listed(self, *entries: ExecutorEntry, asked: int | None = None) -> None:
        """Hear the helper's list, asked for just now unless it was earlier."""
        number = next(self.numbers) if asked is None else asked
        self.machine.listed({entry.user: entry for entry in entries}, number, self.now)
        self.collect()

    def wait(self, seconds: float) -> None:
        """Let time pass as the service does: ring at each deadline."""
        end = self.now + seconds
        for _ in range(20_000):
            deadline = self.machine.next_deadline()
            if deadline > end:
                break
            self.now = max(self.now, deadline)
            self.machine.time_passed(self.now)
            self.collect()
        else:
            raise AssertionError("the machine wants to be woken for ever")
        self.now = end

    def ready(self, user: str) -> None:
        """Bring a user's executor up."""
        self.job(user, f"first of {user}")
        self.running(user)
        self.wait(0.25)
        assert self.state(user) is State.READY
        self.actions.clear()

    def state(self, user: str) -> State:
        return self.machine._users[user].state

    def bodies(self, kind: type[HandOver | Park | PutBack | Ack | GiveBack] = HandOver) -> list[str]:
        return [action.delivery.body.decode().strip() for action in self.actions if isinstance(action, kind)]

    def of(self, kind: type[A]) -> list[A]:
        return [action for action in self.actions if isinstance(action, kind)]

    def parked(self) -> list[tuple[str, str]]:
        return [(action.delivery.body.decode().strip(), action.reason) for action in self.of(Park)]

    def faults(self) -> list[Fault]:
        return [action.fault for action in self.of(Report)]


class OneOfSeveral(Listener):
    """A machine that knows of other hosts; ``there`` are the users with an executor that is ready on one of them."""

    def __init__(self, **hand_over: Any) -> None:
        super().__init__(**hand_over)
        self.there: set[str] = set()
        self.machine = Machine(
            BrokerConfig(), HandOverConfig(**hand_over), jitter=lambda: 0.5, elsewhere=self.there.__contains__
        )
        self.machine.publishable(on=True)

    def elsewhere(self, user: str, *, ready: bool) -> None:
        (self.there.add if ready else self.there.discard)(user)
        self.machine.elsewhere(user, self.now)
        self.collect()

    def wanted(self, user: str) -> None:
        self.machine.wanted(user, self.now)
        self.collect()

    def told(self) -> list[UserState]:
        return [action.state for action in self.actions if isinstance(action, Tell)]
