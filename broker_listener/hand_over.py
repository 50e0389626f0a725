"""The per-user machine: what happened goes in with its time, what is to be done comes out; it does no I/O itself.

It decides when a job is held, handed over, parked or given back. Bodies and properties are the publishers' and are
passed on unread, user names come from ``jobs`` and match the grammar, and whether a user may have an executor is the
helper's word alone. It never reads a clock, never acks what was not confirmed, and lets no user's events touch another.
"""

import random
from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from broker_listener.actions import Action, Fault, Report
from broker_listener.answers import Answer, Answers, WhyNotHere
from broker_listener.aside import Leaving
from broker_listener.config import BrokerConfig, HandOverConfig
from broker_listener.confirms import Outcome
from broker_listener.consuming import Delivery
from broker_listener.host_fault import HostFaults
from broker_listener.job_log import Happened, HostChanged
from broker_listener.large_body import LargeBody
from broker_listener.pacing import Budget, Limits, SeenJobs
from broker_listener.probes import Probes
from broker_listener.requeue import redelivered_too_often
from broker_listener.settlement import Settlement
from broker_listener.shares import Shares
from broker_listener.start_failures import fails_for_long
from broker_listener.started_before import StartedBefore
from broker_listener.steps import Steps
from broker_listener.timers import Timers
from broker_listener.transitions import Event, State
from broker_listener.turns import Turns
from broker_listener.user import Executor, Held, User
from protocol.messages import ExecutorEntry, FailedReason

NO_ROOM: Final = FailedReason.AT_CAPACITY.value
WANTED_FOR: Final = 30.0
"""Seconds for which a start that another host wants is tried again where it fails."""
MAX_WANTED: Final = 1024
"""Users who wait until the helper can be asked for them: while there are more, no other host's wish is added."""
FORGET_AFTER: Final = 600.0
MAX_IDLE_USERS: Final = 4096


class Machine:
    """All users' machines and what they share; every time is of one monotonic clock, in seconds."""

    def __init__(  # noqa: PLR0913 - the configuration, and what is asked of others
        self,
        broker: BrokerConfig,
        hand_over: HandOverConfig,
        may_give_back: Callable[[Delivery], bool] | None = None,
        jitter: Callable[[], float] = random.random,
        elsewhere: Callable[[str], bool] | None = None,
        *,
        started: StartedBefore | None = None,
    ) -> None:
        """``may_give_back`` is mode "requeue": it says of a job whether giving it back is a way to hand it over.

        ``elsewhere`` says whether another host has an executor of the user that is ready; None: there are no others.
        ``started`` holds the users whom the helper has started before; what it says of others is added.
        """
        self._actions: list[Action] = []
        self._broker = broker
        self._max_hold = broker.max_hold
        self._limits = Limits(hand_over.retry_initial, hand_over.retry_max, jitter)
        self._elsewhere = elsewhere or (lambda _: False)
        self._users: dict[str, User] = {}
        self._max_users = MAX_IDLE_USERS
        self._seen = SeenJobs()
        self._timers = Timers()
        self.settlement = Settlement(broker, self._actions)
        self.host = HostFaults()
        self._probes = Probes(self.host, others=elsewhere is not None)
        counters, known = self.settlement.counters, StartedBefore() if started is None else started
        self._answers = Answers(hand_over, self._actions, counters, self.host, known)
        budget = Budget(hand_over.returns_per_second)
        self._shares = Shares(broker, self._actions, self._answers.grace, self.settlement)
        self._turns = Turns(self.settlement, self._seen, self._limits, budget, may_give_back)
        self._steps = Steps(
            broker,
            hand_over,
            self._actions,
            self._answers,
            self.settlement,
            self._turns,
            self._timers,
            self._limits,
            self.host,
            self._probes,
            self._shares,
            others=elsewhere is not None,
        )

    @property
    def users(self) -> Mapping[str, User]:
        """All users that are known, by name; to look at, not to change."""
        return self._users

    def take_actions(self, now: float) -> list[Action]:
        """Give what is to be done now, in this order; each action once. After one or more events, not in between."""
        self._steps.serve(now)
        taken = self._actions.copy()
        self._actions.clear()
        return taken

    def take_happened(self) -> list[Happened]:
        """Give what there is for the log, each once."""
        taken = self.settlement.happened.copy()
        self.settlement.happened.clear()
        return taken

    def job(self, name: str, delivery: Delivery, digest: bytes, now: float, *, handed: bool = False) -> None:
        """Take a job of the user; ``digest`` is of ``pacing.digest``, ``handed`` where it bears a hand-over's mark."""
        self.settlement.arrived(delivery)
        user = self._user(name, now)
        user.active_at = now
        sight = self._seen.arrived(digest, now)
        returned = handed or sight.handed
        if redelivered_too_often(delivery) and not self._turns.goes_at_once(user, returned=returned):
            if returned:
                user.pace.came_back(sight, self._limits, now)
            self.settlement.publish_again(delivery, now)
            return
        held = Held(sight.seq, delivery.tag, returned, now, delivery, sight)
        if not self._shares.takes(user, held):
            if user.unknown_since != inf and user.state is not State.FAILED:
                self._answers.grace.add(user)
            if not user.held:
                user.held_until = now + self._max_hold  # of those that arrive after it, none is older
            user.hold(held)
        if returned:
            user.returns += 1
            self.settlement.counters.returned += 1
            user.pace.came_back(sight, self._limits, now)
        self._steps.happens(user, Event.RETURNED if returned else Event.JOB, now)
        self._steps.park_unknown(now)
        self._shares.arrived(user)

    def no_job(self, delivery: Delivery, reason: str, detail: str, now: float) -> None:
        """Take a message that is no job: it is parked."""
        self.settlement.arrived(delivery)
        if redelivered_too_often(delivery):  # nobody knows how long the parked queue takes nothing
            self.settlement.publish_again(delivery, now)
            return
        self._actions.append(Report(Fault.PARKED, None, f"reason={reason} {detail}"))
        self.settlement.park(Leaving(delivery, reason, detail, now), now)

    def keeps(self, size: int, now: float) -> bool:
        """Return whether a body over ``max_body`` that begins to arrive is to be kept."""
        return self.settlement.keeps(size, now)

    def too_large(self, delivery: Delivery, large: LargeBody, now: float) -> None:
        """Handle a message that is larger than any job: it is parked, unless it is too large for that, too."""
        self.settlement.arrived(delivery)
        detail = f"{large.size} bytes, max_body is {self._broker.max_body}"
        if large.size > self._broker.max_parkable:
            said = f"size={large.size} max_parkable={self._broker.max_parkable}"
            self._actions.append(Report(Fault.NOT_PARKABLE, None, said))
        elif large.kept:  # else it arrives again
            self._actions.append(Report(Fault.PARKED, None, f"reason=too_large {detail}"))
        self.settlement.park_large(Leaving(delivery, "too_large", detail, now), now)

    def deliveries_lost(self, now: float) -> None:
        """Forget every delivery: the channel that they came on is gone."""
        self.settlement.lost()
        self._turns.clear()
        self._shares.clear()
        for user in self._users.values():
            self._answers.grace.leave(user, user.grace_jobs)
            user.keep([])
            user.pace.out.clear()
            user.under_way = 0
            user.held_until = inf
            self._steps.arm(user, now)

    def published(self, token: int, outcome: Outcome, now: float) -> None:
        """Take the broker's answer to what was published with the token."""
        taken = outcome is Outcome.CONFIRMED
        under_way = self.settlement.published(token, outcome, now)
        if under_way is not None:
            user, held = under_way
            user.under_way -= 1
            if taken:
                user.failures = 0
                self._turns.confirmed(user, held, now)
            else:
                self._seen.not_taken(held.sight)
                if redelivered_too_often(held.delivery):
                    self.settlement.publish_again(held.delivery, now)
                else:
                    self._steps.not_taken(user, held, now)
                self._actions.append(Report(Fault.NOT_PUBLISHED, user.name, f"outcome={outcome.value}"))
            if not user.queued and (user.held or user.state is not State.READY):
                self._steps.look(user, now)

    def publishable(self, *, on: bool) -> None:
        """Take whether publishing is possible."""
        self.settlement.publishable(on=on)

    def answered(self, name: str, answer: Answer, heard: int, now: float) -> None:
        """Take the helper's answer to an ``Ask``, or None where it gave none; ``heard`` is the answer's number."""
        user, starts = self._users[name], self.host.starts
        was_probe = user.starts.probing
        event = self._answers.answered(user, answer, heard, now)
        if was_probe and answer is not None:
            self._probes.answered(now, barren=self.host.starts == starts)
        self._may_happen(user, event, now)
        self._follow_host(now)

    def listed(self, entries: Mapping[str, ExecutorEntry], asked: int, now: float) -> None:
        """Take the helper's whole list, with which it begins after each connect: it is there again.

        It says that an executor is gone where that was heard of before the list was asked for.
        """
        self._answers.listed_since(asked)
        for name, entry in entries.items():
            user = self._user(name, now)
            executor = Executor(entry.uid, entry.pid, entry.cgroup, now, asked)
            self._may_happen(user, self._answers.listed(user, executor), now)
        for user in list(self._users.values()):
            if user.name not in entries and user.executor is not None and user.executor.heard <= asked:
                self._may_happen(user, self._answers.listed(user, None), now)
            elif user.state is State.BACKING_OFF and (user.away or fails_for_long(user, now)):
                user.hung = False
                self._steps.happens(user, Event.PAUSE_OVER, now)

    def exited(self, name: str, pid: int, heard: int, now: float) -> None:
        """Take the helper's notice that an executor has ended."""
        if (user := self._users.get(name)) is not None:
            self._may_happen(user, self._answers.exited(user, pid, heard, now), now)
        self._follow_host(now)
        full = [user for user in self._users.values() if user.state is State.BACKING_OFF and user.reason == NO_ROOM]
        self._answers.executor_ended(now)
        if full:  # there is room for one now
            longest = min(full, key=lambda user: (not self._answers.has_started(user.name), user.asked_at))
            longest.until = min(longest.until, now)
            self._steps.arm(longest, now)

    def connected(self, name: str, now: float) -> None:
        """Take that the watched executor of the user has a connection to the broker."""
        if (user := self._users.get(name)) is not None and user.watched:
            self._steps.connected(user, now)
            self._follow_host(now)

    def elsewhere(self, name: str, now: float) -> None:
        """Take that the first executor of the user is ready on another host, or that another host has one no more."""
        if (user := self._users.get(name)) is not None:
            self._steps.elsewhere(user, now, ready=self._elsewhere(name))

    def wanted(self, name: str, now: float) -> None:
        """Take that another host wants the user to have an executor here: it is, or has become, our turn.

        It says so again while it holds a job of the user, so that what is too much now is not lost.
        """
        if self._answers.waiting >= MAX_WANTED and not self._answers.has_started(name):
            return
        user = self._user(name, now)
        user.active_at = now
        if user.state not in (State.PROBING, State.READY):
            user.wanted_until = now + WANTED_FOR
        waits_for_another = user.state is State.BACKING_OFF and user.reason in set(WhyNotHere)
        self._steps.happens(user, Event.PAUSE_OVER if waits_for_another else Event.WANTED, now)

    def next_deadline(self) -> float:
        """Give the time at which ``time_passed`` is wanted next, infinite where nothing waits for a time."""
        parts = (self._timers, self._turns, self.settlement, self._answers, self._probes, self._shares)
        return min(part.next_at() for part in parts)

    def time_passed(self, now: float) -> None:
        """Do what is due; where that raises for a user, the others are due still."""
        self._answers.ask_next(now)
        due = deque(self._timers.due(now))
        try:
            while due:
                self._steps.look(due.popleft(), now)
        finally:
            for user in due:
                self._timers.set(user, now)
        self._follow_host(now)

    def stop(self) -> None:
        """Hand nothing over and park nothing any more."""
        self.settlement.stop()

    def _user(self, name: str, now: float) -> User:
        user = self._users.get(name)
        if user is not None and not (now - user.active_at > FORGET_AFTER and _forgettable(user)):
            return user
        if user is not None:
            self._forget(user)
        elif len(self._users) >= self._max_users:
            self._forget_idle()
        user = self._users[name] = User(name, now)
        user.elsewhere = self._elsewhere(name)
        return user

    def _forget_idle(self) -> None:
        for user in [user for user in self._users.values() if _forgettable(user)]:
            self._forget(user)
        self._max_users = max(MAX_IDLE_USERS, 2 * len(self._users))

    def _forget(self, user: User) -> None:
        self._timers.set(user, inf)
        self._probes.leave(user)
        self._answers.grace.leave(user, user.grace_jobs)
        del self._users[user.name]

    def _follow_host(self, now: float) -> None:
        """Do what follows from a fault of the host that is new or over, and ask for those whose turn it is."""
        for change in self.host.take_changes(now):
            self.settlement.happened.append(HostChanged(change.fault.reason.value, change.fault.users, change.over))
            for name in change.users:
                user = self._users.get(name)
                if user is not None and self._answers.failures.host_is_at_fault(user, change, now):
                    self._look_now(user, now)
        for user in self._probes.due(now):
            self._look_now(user, now)

    def _look_now(self, user: User, now: float) -> None:
        user.until = min(user.until, now)
        self._steps.look(user, now)

    def _may_happen(self, user: User, event: Event | None, now: float) -> None:
        if event is not None:
            self._steps.happens(user, event, now)


def _forgettable(user: User) -> bool:
    return user.idle and user.state in (State.ABSENT, State.BACKING_OFF, State.FAILED)
