"""What each step of the table does, and what each state waits for. Time is an argument.

The state is changed in ``happens`` and nowhere else, as the table says. A step never raises for what a publisher, the
broker or the helper did: each event is a row of every state.
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from broker_listener.actions import Action, Fault, Report, Tell, Unwatch, Watch
from broker_listener.answers import Answers, WhyNotHere
from broker_listener.aside import Leaving
from broker_listener.config import BrokerConfig, HandOverConfig
from broker_listener.host_fault import Blame, HostFaults
from broker_listener.host_messages import UserState
from broker_listener.job_log import Changed
from broker_listener.pacing import ACCEPTED_AFTER, Limits
from broker_listener.probes import Probes
from broker_listener.settlement import Settlement
from broker_listener.shares import Shares
from broker_listener.timers import Timers
from broker_listener.transitions import TRANSITIONS, Do, Event, State
from broker_listener.turns import Turns
from broker_listener.user import Held, User

CHECK_PAUSE: Final = 1.0
"""Seconds between two requests for a user whose jobs come back."""
TRAFFIC_PAUSE: Final = 60.0
"""The same for a user whose jobs do not: the helper's ``idle_after`` counts from the last request."""
PUBLISH_PAUSE: Final = 0.1
MAX_PUBLISH_PAUSE: Final = 5.0
EXPIRY_PAUSE: Final = 1.0
"""Seconds between two looks through what is held of a user for too long."""
TOO_MANY_UNKNOWN: Final = ("unknown_user", "too many jobs of unknown users wait already")

HOST_FAULT: Final = "host_fault"
"""Why a user is not asked for who waits until the host can start executors again."""

_NO_NEW_TIME: Final = (Do.NOTHING, Do.SERVE, Do.CHECK)

Step = Callable[[User, float], None]


class Steps:
    """Moves users through the table."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of the machine, wired once
        self,
        broker: BrokerConfig,
        config: HandOverConfig,
        actions: list[Action],
        answers: Answers,
        settlement: Settlement,
        turns: Turns,
        timers: Timers,
        limits: Limits,
        host: HostFaults,
        probes: Probes,
        shares: Shares,
        *,
        others: bool,
    ) -> None:
        self._max_hold = broker.max_hold
        self._config = config
        self._actions = actions
        self._answers = answers
        self._settlement = settlement
        self._turns = turns
        self._timers = timers
        self._limits = limits
        self._host = host
        self._probes = probes
        self._shares = shares
        self._others = others
        self._steps: Mapping[Do, Step] = {
            Do.NOTHING: self._nothing,
            Do.SERVE: self._serve,
            Do.CHECK: self._check,
            Do.PROBE: self._probe,
            Do.ASK: self._ask,
            Do.WATCH: self._watch,
            Do.PAUSE: self._pause,
            Do.FORGET: self._forget,
            Do.PARK: self._refuse,
        }
        self._looks: Mapping[State, Step] = {
            State.ABSENT: self._nothing,
            State.STARTING: self._look_at_start,
            State.PROBING: self._look_at_probe,
            State.READY: self._nothing,
            State.BACKING_OFF: self._look_at_pause,
            State.FAILED: self._look_at_pause,
        }

    def happens(self, user: User, event: Event, now: float) -> None:
        """Take the step of the user's state for the event."""
        step = TRANSITIONS[user.state, event]
        if user.watched and (event is Event.STARTED or step.state is not State.STARTING):
            user.watched = False
            self._actions.append(Unwatch(user.name))
        stays = step.state is user.state and step.do in _NO_NEW_TIME
        if step.state is not user.state:
            oldest = user.held[0].delivery if user.held else None
            self._settlement.happened.append(Changed(user.name, user.state, step.state, oldest))
            user.state, user.changed_at = step.state, now
        self._steps[step.do](user, now)
        if self._others:
            self._tell(user)
        self._turns.join(user, now)  # whose time has come before the timer rang: that is set anew below
        if not (stays and user.queued and user.wake_at != inf):  # who is in line is looked at there
            self.arm(user, now)

    def connected(self, user: User, now: float) -> None:
        """Take that the user's executor is connected, which ends a row of deaths."""
        self._is_ready(user, now)
        self.happens(user, Event.CONNECTED, now)

    def elsewhere(self, user: User, now: float, *, ready: bool) -> None:
        """Take whether another host has an executor of the user that is ready, after a change: what is held goes then.

        Where one is no more, the next job asks anew who is to run one.
        """
        user.elsewhere, user.asked_at = ready, -inf
        if ready:
            self._answers.known(user)
        if user.reason == WhyNotHere.ON_ANOTHER_HOST:
            user.until = min(user.until, now)
        self._turns.join(user, now)
        self.arm(user, now)

    def look(self, user: User, now: float) -> None:
        """Do what is due for the user."""
        if user.held and now >= user.held_until:
            self._give_back_expired(user, now)
        self._looks[user.state](user, now)
        self._turns.join(user, now)
        self.arm(user, now)

    def arm(self, user: User, now: float) -> None:
        """Set the time of the user's next look."""
        at = user.held_until if user.held else inf
        turn = self._next_turn(user, now) if user.elsewhere else inf
        self._timers.set(user, min(at, turn, self._next_look(user, now)))

    def serve(self, now: float) -> None:
        """Publish what may be published now."""
        self._settlement.serve(now)
        self._shares.serve(now)
        for user in self._turns.serve(now):
            self.arm(user, now)

    def not_taken(self, user: User, held: Held, now: float) -> None:
        """Hold a job again that the broker did not take, with a pause that grows while it takes none of the user's."""
        user.hold(held)
        user.held_until = min(user.held_until, held.since + self._max_hold)
        if not user.failures or now >= user.pace.next_at:  # what was under way together is one failure
            user.pace.next_at = now + min(PUBLISH_PAUSE * 2**user.failures, MAX_PUBLISH_PAUSE)
            user.failures = min(user.failures + 1, 10)

    def park_unknown(self, now: float) -> None:
        """Park, of the jobs of users who are unknown so far, those that waited longest and are too many."""
        while (user := self._answers.grace.too_long()) is not None:
            self._answers.grace.leave(user, 1)
            self._park([user.take_oldest()], user, *TOO_MANY_UNKNOWN, now)
            if not user.held:
                self._answers.known(user)  # a job that comes later is waited for as the first one was
                if self._answers.leave(user):
                    self.happens(user, Event.GONE, now)
            self.arm(user, now)

    def _next_look(self, user: User, now: float) -> float:
        match user.state:
            case State.ABSENT:
                return inf
            case State.STARTING:
                return min(user.until, self._overdue_at(user)) if user.executor is not None else inf
            case State.BACKING_OFF | State.FAILED:
                return user.until
            case State.PROBING if user.pace.out:
                return user.pace.out[0][0] + ACCEPTED_AFTER
            case State.PROBING | State.READY:
                return self._next_turn(user, now)

    @staticmethod
    def _next_turn(user: User, now: float) -> float:
        return user.pace.next_at if user.held and user.pace.next_at > now else inf

    def _overdue_at(self, user: User) -> float:
        return self._waiting_since(user) + self._config.start_timeout

    def _waiting_since(self, user: User) -> float:
        """Give since when the oldest job waits; where it is another host that holds jobs, since the start."""
        if user.held:
            return user.held[0].sight.since
        return user.executor.known_at if self._others and user.executor is not None else inf

    def _look_at_start(self, user: User, now: float) -> None:
        if user.executor is None:
            return
        if now >= user.until:
            self.connected(user, now)
        elif now >= self._overdue_at(user):
            waited = now - self._waiting_since(user)
            self._actions.append(Report(Fault.START_OVERDUE, user.name, f"waited={waited:.0f}s"))
            self.happens(user, Event.OVERDUE, now)

    def _look_at_probe(self, user: User, now: float) -> None:
        # While the consumer is cancelled what came back would not reach us: the next one is tried then.
        if user.pace.accepted(self._limits, now) and self._settlement.consuming:
            self._is_ready(user, now)
            self.happens(user, Event.ACCEPTED, now)

    def _look_at_pause(self, user: User, now: float) -> None:
        if now >= user.until:
            self.happens(user, Event.PAUSE_OVER, now)

    def _give_back_expired(self, user: User, now: float) -> None:
        limit = now - self._max_hold
        expired = [held for held in user.held if held.since <= limit]
        user.keep(held for held in user.held if held.since > limit)
        self._answers.grace.leave(user, len(expired))
        for held in expired:
            self._settlement.held_too_long(held.delivery)
        first = min((held.since for held in user.held), default=inf)
        user.held_until = max(first + self._max_hold, now + EXPIRY_PAUSE)
        if expired:
            self._actions.append(Report(Fault.HELD_TOO_LONG, user.name, f"jobs={len(expired)} state={user.state.name}"))

    def _nothing(self, user: User, now: float) -> None:
        pass

    def _serve(self, user: User, now: float) -> None:
        if now - user.asked_at >= TRAFFIC_PAUSE:
            self._answers.ask(user, now)
        self._turns.join(user, now)

    def _check(self, user: User, now: float) -> None:
        if now - user.asked_at >= CHECK_PAUSE:
            self._answers.ask(user, now)
        self._turns.join(user, now)

    def _probe(self, user: User, now: float) -> None:
        user.wanted_until = -inf
        user.pace.reset(self._limits.initial, now)
        self._turns.join(user, now)

    def _ask(self, user: User, now: float) -> None:
        if self._probes.may_start(user, now) or self._others:  # where others may start the user, that is asked next
            self._answers.ask(user, now)
            return
        user.until, user.starts.blame = inf, Blame.HOST
        user.reason = user.reason if user.starts.strikes else HOST_FAULT
        self.happens(user, Event.NOT_NOW, now)

    def _is_ready(self, user: User, now: float) -> None:
        if not user.was_ready:  # one that ran before we looked proves nothing
            self._host.ready(now)
        user.was_ready, user.starts.deaths = True, 0

    def _watch(self, user: User, now: float) -> None:
        user.until = inf
        if self._config.ready == "delay":
            user.until = now + self._config.ready_delay
        elif (executor := user.executor) is not None:
            user.watched = True
            self._actions.append(Watch(user.name, executor.uid, executor.cgroup))

    def _pause(self, user: User, now: float) -> None:
        user.executor, user.was_ready = None, False
        self.park_unknown(now)

    def _forget(self, user: User, now: float) -> None:
        user.executor, user.was_ready = None, False
        if user.held or now < user.wanted_until:
            self.happens(user, Event.WANTED, now)

    def _refuse(self, user: User, now: float) -> None:
        user.executor, user.was_ready = None, False
        if not user.elsewhere:  # or what may not run here goes where it may
            parked = sorted(user.held)
            user.keep([])
            self._park(parked, user, *user.refusal, now)

    def _tell(self, user: User) -> None:
        there = UserState.STARTING if user.executor is not None else UserState.GONE
        served = user.state in (State.PROBING, State.READY)  # connected, or overdue: others' jobs go to it, too
        state = UserState.READY if served else there
        if state is not user.told:
            user.told = state
            self._actions.append(Tell(user.name, state))

    def _park(self, parked: list[Held], user: User, reason: str, detail: str, now: float) -> None:
        for held in parked:
            self._settlement.park(Leaving(held.delivery, reason, detail, held.since, user), now)
        if parked:
            self._actions.append(Report(Fault.PARKED, user.name, f"reason={reason} jobs={len(parked)}"))
