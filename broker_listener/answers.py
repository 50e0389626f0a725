"""What the helper is asked, and what its answers mean for a user: an event of the table.

The helper's word is taken for what it says and no further: only executors that ran and died before they were ready are
counted against a user, a user is unknown only after ``unknown_grace``, and everything else that is not a refusal means:
hold, ask again. Whose fault a failure is says ``host_fault``. At most one request a user is under way; ``ask_queue``
decides whose is sent next, ``grace`` who waits though unknown.
"""

from enum import StrEnum
from math import inf
from types import MappingProxyType
from typing import Final, NamedTuple, assert_never

from broker_listener.actions import Action, Ask, Fault, Report
from broker_listener.ask_queue import AskQueue
from broker_listener.config import HandOverConfig
from broker_listener.counters import Counters
from broker_listener.grace import Grace
from broker_listener.host_fault import FaultReason, HostFaults
from broker_listener.request_window import NO_ROOM_PAUSE, SECOND
from broker_listener.start_failures import (
    MAX_PAUSE,
    MIN_PAUSE,
    OUTAGE_PAUSE,
    PATIENT_PAUSE,
    START_FAILED,
    STRIKES,
    StartFailures,
)
from broker_listener.started_before import StartedBefore
from broker_listener.transitions import Event
from broker_listener.user import Executor, User
from protocol.messages import Failed, FailedReason, Refused, RefusedReason, Running, Started


class WhyNotHere(StrEnum):
    """Why the helper of this host is not asked for a user's executor."""

    ON_ANOTHER_HOST = "on_another_host"
    """It runs or starts there."""
    ANOTHER_HOSTS_TURN = "another_hosts_turn"
    NO_HOST_FREE = "no_host_free"


class NotHere(NamedTuple):
    """The helper was not asked."""

    reason: WhyNotHere


Answer = Running | Started | Refused | Failed | NotHere | None
"""None: the helper is away, or did not answer in time."""

REFUSED_FOR: Final = 10.0
"""Seconds for which a refusal is not asked again."""
AWAY_PAUSE: Final = 5.0
"""Seconds until a helper that gave no answer is asked again; when it comes back, that is at once."""
DEATH_PAUSE: Final = 1.0
DIED: Final = "it ended before it was connected"
NOT_HERE_PAUSES: Final = MappingProxyType(
    {WhyNotHere.ON_ANOTHER_HOST: 5.0, WhyNotHere.ANOTHER_HOSTS_TURN: 0.5, WhyNotHere.NO_HOST_FREE: 2.0}
)
"""Seconds until it is looked again who is to run a user's executor; at once where another host has it no more."""
SERVED_PAUSE: Final = 60.0
"""The same while an executor is ready there: so often it is told that the user's jobs go on."""
STALE_PAUSE: Final = 0.2
"""Seconds until it is asked again where an answer was overtaken by a later word."""
UNKNOWN_PAUSE: Final = 1.0
CROWDED_PAUSE: Final = 0.2
"""Seconds, doubled each time, until a user is asked for again whom other look-ups of ours may have left no room."""


class Answers:
    """Asks, and reads the answers into the user's record."""

    def __init__(
        self,
        config: HandOverConfig,
        actions: list[Action],
        counters: Counters,
        host: HostFaults,
        started: StartedBefore,
    ) -> None:
        self._config = config
        self._host = host
        self.failures = StartFailures(host)
        self._counters = counters
        self._actions = actions
        self._started = started
        self._queue = AskQueue()
        self.next_at = self._queue.next_at
        self.grace = Grace()
        self._listed_since = 0

    @property
    def waiting(self) -> int:
        """How many users the helper is still to be asked for."""
        return len(self._queue)

    def ask(self, user: User, now: float) -> None:
        """Ask for the user's executor, unless that is being asked."""
        if user.asking:
            return
        user.asking, user.asked_at = True, now
        self._queue.join(user, known=self.has_started(user.name) or user.executor is not None)
        self.ask_next(now)

    def has_started(self, name: str) -> bool:
        """Return True if the helper has started an executor of the user, as far as is remembered."""
        return name in self._started

    def leave(self, user: User) -> bool:
        """Withdraw what is not asked yet for a user who was unknown; return True if something was."""
        if user.asking and self._queue.leave(user):
            user.asking = False
            return True
        return False

    def executor_ended(self, now: float) -> None:
        """Handle that the helper has a place again."""
        self._queue.executor_ended()
        self.ask_next(now)

    def ask_next(self, now: float) -> None:
        """Ask for those whose turn has come."""
        while (user := self._queue.take(now)) is not None:
            fresh = user.executor is None or user.executor.cgroup is None
            self._actions.append(Ask(user.name, fresh, user.starts.probing))

    def answered(self, user: User, answer: Answer, heard: int, now: float) -> Event | None:
        """Take an answer; None where it tells nothing new."""
        user.asking = user.starts.probing = False
        user.starts.blame = None
        crowded = self._queue.answered(user, _no_room_for(answer), now)
        user.hung = answer is None or (isinstance(answer, Failed) and answer.reason is FailedReason.LOOKUP_TIMEOUT)
        self.ask_next(now)
        self._counters.answers[_name_of(answer)] += 1
        user.turned_back = user.turned_back + 1 if _no_room_for(answer) else 0
        match answer:
            case None:
                user.away, user.until = True, now + AWAY_PAUSE
                return Event.AWAY
            case NotHere():
                user.away, user.reason, user.wanted_until = False, answer.reason.value, -inf
                pause = SERVED_PAUSE if user.elsewhere else NOT_HERE_PAUSES[answer.reason]
                return self._pause(user, Event.NOT_NOW, pause, now)
            case Running() | Started():
                return self._has_executor(user, answer, heard, now)
            case Refused():
                return self._refused(user, answer.reason, now)
            case Failed():
                return self._failed(user, answer, now, crowded=crowded)
            case _:
                assert_never(answer)

    def exited(self, user: User, pid: int, heard: int, now: float) -> Event | None:
        """Take the end of an executor; None where it is not the one that counts."""
        user.gone_pid, user.gone_heard = pid, heard
        if user.executor is None or user.executor.pid != pid:
            return None
        if user.was_ready:
            return Event.GONE
        return self._died(user, now)

    def listed_since(self, asked: int) -> None:
        """Take that a list is there which was asked for under that number: it overtakes all that was heard before."""
        self._listed_since = asked

    def listed(self, user: User, executor: Executor | None) -> Event | None:
        """Take what the helper's list says of the user; None where we knew that, or know better."""
        known = user.executor
        if executor is None:
            return Event.GONE if known is not None else None
        self._started.add(user.name)
        if _has_ended(user, executor.pid, executor.heard) or (known is not None and known.heard > executor.heard):
            return None
        if known is not None and known.pid == executor.pid:
            user.executor = known._replace(heard=executor.heard)
            return None
        self.known(user)
        user.executor, user.was_ready, user.reason = executor, True, None
        return Event.RUNNING

    def known(self, user: User) -> None:
        """Forget that the user was unknown."""
        self.grace.leave(user, user.grace_jobs)
        user.unknown_since, user.unknown_asks = inf, 0

    def _has_executor(self, user: User, answer: Running | Started, heard: int, now: float) -> Event | None:
        user.away, user.reason = False, None
        self.known(user)
        user.starts.strikes, user.starts.struck_since = 0, inf
        if isinstance(answer, Started):
            self._host.started(now)
        self._started.add(user.name)
        known = user.executor
        if known is not None and known.pid == answer.pid:
            user.executor = known._replace(heard=max(heard, known.heard))
            return None
        has_ended = _has_ended(user, answer.pid, heard)
        if has_ended and isinstance(answer, Started):  # the notice of its end, which came first, could not be counted
            return self._died(user, now)
        if has_ended or heard <= self._listed_since:
            return self._pause(user, Event.NOT_NOW, STALE_PAUSE, now)
        user.executor = Executor(answer.uid, answer.pid, answer.cgroup, now, heard)
        user.was_ready = isinstance(answer, Running)
        return Event.RUNNING if user.was_ready else Event.STARTED

    def _refused(self, user: User, reason: RefusedReason, now: float) -> Event:
        user.away, user.reason = False, reason.value
        if reason is not RefusedReason.UNKNOWN_USER:
            self.known(user)
        elif user.elsewhere:  # another host's directory knows the user
            return self._pause(user, Event.NOT_NOW, UNKNOWN_PAUSE, now)
        elif not self._is_unknown(user, now):
            pause = min(UNKNOWN_PAUSE * 2**user.unknown_asks, user.unknown_since + self._config.unknown_grace - now)
            user.unknown_asks = min(user.unknown_asks + 1, 10)
            return self._pause(user, Event.NOT_NOW, pause, now)
        self._started.remove(user.name)
        self.grace.leave(user, user.grace_jobs)
        user.refusal = (reason.value, "refused by the root helper")
        return self._pause(user, Event.REFUSED, REFUSED_FOR, now)

    def _is_unknown(self, user: User, now: float) -> bool:
        if user.unknown_since == inf:
            user.unknown_since = now
            self.grace.add(user, len(user.held))
        return now - user.unknown_since >= self._config.unknown_grace

    def _failed(self, user: User, answer: Failed, now: float, *, crowded: bool) -> Event:
        user.away, user.reason = False, answer.reason.value
        if answer.reason in STRIKES:
            return self._struck(user, STRIKES[answer.reason], answer.retry_after, now)
        if answer.reason is FailedReason.LOOKUP_TIMEOUT:  # the directory's outage may have made it unknown before
            self.known(user)
        self._actions.append(Report(Fault.NO_EXECUTOR_NOW, user.name, answer.reason.value))
        if crowded and answer.reason is FailedReason.AT_CAPACITY:
            pause = min(answer.retry_after, CROWDED_PAUSE * 2 ** (user.turned_back - 1))
            return self._pause(user, Event.NOT_NOW, pause, now)
        next_at = user.asked_at + OUTAGE_PAUSE if answer.reason is FailedReason.LOOKUP_TIMEOUT else now
        return self._pause(user, Event.NOT_NOW, max(answer.retry_after, next_at - now), now)

    def _struck(self, user: User, reason: FaultReason, retry_after: float, now: float) -> Event:
        """Hold what the user has, whose start failed."""
        self.known(user)
        self._actions.append(Report(Fault.NO_EXECUTOR_NOW, user.name, reason.value))
        pause = self.failures.struck(user, reason, retry_after, now)
        user.until = now + pause
        if pause >= PATIENT_PAUSE:
            self._actions.append(Report(Fault.STARTS_FAIL_FOR_LONG, user.name, f"reason={reason.value}"))
        return Event.NOT_NOW

    def _died(self, user: User, now: float) -> Event:
        """Hold what the user has, whose executor died before it was ready; park it if that was so too often."""
        self.known(user)
        user.reason = DIED
        deaths = self.failures.died(user, now)
        count = f"{deaths} in a row" if deaths else "by the host's fault"
        self._actions.append(Report(Fault.START_ENDED_BADLY, user.name, f"{DIED}, {count}"))
        if deaths < self._config.max_start_attempts:
            return self._pause(user, Event.NOT_NOW, DEATH_PAUSE, now)
        user.refusal = (START_FAILED, f"{deaths} executors in a row ended before they were connected")
        return self._pause(user, Event.REFUSED, REFUSED_FOR, now)

    @staticmethod
    def _pause(user: User, event: Event, pause: float, now: float) -> Event:
        user.until = now + min(max(pause, MIN_PAUSE), MAX_PAUSE)
        return event


def _name_of(answer: Answer) -> str:
    if isinstance(answer, Refused | Failed | NotHere):
        return answer.reason.value
    return "none" if answer is None else type(answer).__name__.lower()


def _no_room_for(answer: Answer) -> float:
    """Return for how many seconds the helper has room for nobody, 0 if it did not say so, or of this user alone."""
    if isinstance(answer, Failed):
        if answer.reason is FailedReason.AT_CAPACITY:
            return NO_ROOM_PAUSE
        if answer.reason is FailedReason.RATE_LIMITED and 0 < answer.retry_after <= SECOND:
            return answer.retry_after
    return 0.0


def _has_ended(user: User, pid: int, heard: int) -> bool:
    """Return True if the end of this executor was heard later: after an end that pid is another executor's."""
    return pid == user.gone_pid and heard < user.gone_heard
