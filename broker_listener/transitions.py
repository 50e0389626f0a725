"""Every state that a user can be in, every event that can meet it, and what then happens: one complete table.

Rule of this file: whatever changes a user's state stands here and nowhere else. ``hand_over`` does what a step says,
and the diagram in the README is drawn from the table. There is no default: an event that a state has no row for is a
bug of ours and raises KeyError.
"""

from collections.abc import Mapping
from enum import IntEnum, auto
from types import MappingProxyType
from typing import Final, NamedTuple


class State(IntEnum):
    """What is known of a user's executor."""

    ABSENT = auto()
    """None is known, and nobody wants one."""
    STARTING = auto()
    """The helper was asked, or has started one that is not connected yet. Jobs are held."""
    PROBING = auto()
    """It is connected, or should be: one job at a time is handed over until one stays away."""
    READY = auto()
    """It takes jobs: what arrives is handed over at once, what comes back is paced."""
    BACKING_OFF = auto()
    """The helper cannot start one now. Jobs are held and it is asked again after a pause."""
    FAILED = auto()
    """There will be none: refused, or too many bad starts. Jobs are parked for a while without asking again."""


class Event(IntEnum):
    """What can happen to a user."""

    JOB = auto()
    """A job that was never handed over has arrived."""
    RETURNED = auto()
    """A job that we had handed over has arrived again."""
    RUNNING = auto()
    """The helper names a running executor other than the one we know."""
    STARTED = auto()
    """The helper has started an executor."""
    NOT_NOW = auto()
    """The helper says: no executor now, ask again later; or a start has ended badly."""
    AWAY = auto()
    """The helper does not answer; what it would have said is not known."""
    REFUSED = auto()
    """The helper will never start one, or has failed to often enough."""
    CONNECTED = auto()
    """The executor that was started has its connection to the broker, or the configured delay is over."""
    OVERDUE = auto()
    """It has none, and the oldest job has waited for ``start_timeout``."""
    ACCEPTED = auto()
    """A job that was handed over has not come back in time."""
    GONE = auto()
    """The executor has ended after it was ready, or the helper's list lacks it."""
    PAUSE_OVER = auto()
    """The pause of BACKING_OFF or FAILED is over."""
    WANTED = auto()
    """Jobs are held for a user who has no executor any more, or another host has jobs of the user."""


class Do(IntEnum):
    """What a step does; ``hand_over`` has one method for each. The job that has arrived is among those held already."""

    NOTHING = auto()
    SERVE = auto()
    """Hand over what may go: all, or the oldest where something came back, or nothing yet."""
    CHECK = auto()
    """The same, and ask the helper whether the executor is still there."""
    PROBE = auto()
    """Begin to hand over, one job at a time."""
    ASK = auto()
    """Ask the helper for an executor."""
    WATCH = auto()
    """Look for the new executor's connection."""
    PAUSE = auto()
    """There is no executor now: forget the one we knew; the helper is asked again later."""
    FORGET = auto()
    """Forget the executor; it is WANTED again if jobs are held."""
    PARK = auto()
    """Park all that is held of the user."""


class Step(NamedTuple):
    """The next state, and what is done on entering it."""

    state: State
    do: Do


def _row(*steps: tuple[State, Do]) -> tuple[Step, ...]:
    return tuple(Step(*step) for step in steps)


_A, _S, _P, _R, _B, _F = State
_STAY: Final = _row(*((state, Do.NOTHING) for state in State))


def _only_in(state: State, then: State, do: Do) -> tuple[Step, ...]:
    """Give the row of an event that comes too late in every other state."""
    return tuple(Step(then, do) if step.state is state else step for step in _STAY)


# A column a state: ABSENT, STARTING, PROBING, READY, BACKING_OFF, FAILED.
_ROWS: Final[Mapping[Event, tuple[Step, ...]]] = {
    Event.JOB: _row((_S, Do.ASK), (_S, Do.NOTHING), (_P, Do.SERVE), (_R, Do.SERVE), (_B, Do.NOTHING), (_F, Do.PARK)),
    Event.RETURNED: _row(
        (_S, Do.ASK), (_S, Do.NOTHING), (_P, Do.CHECK), (_R, Do.CHECK), (_B, Do.NOTHING), (_F, Do.PARK)
    ),
    # What the helper says holds, whatever we thought.
    Event.RUNNING: _row(*[(_P, Do.PROBE)] * 6),
    Event.STARTED: _row(*[(_S, Do.WATCH)] * 6),
    Event.REFUSED: _row(*[(_F, Do.PARK)] * 6),
    Event.NOT_NOW: _row(*[(_B, Do.PAUSE)] * 5, (_F, Do.NOTHING)),
    # A helper that is away says nothing about the executors, which outlive it.
    Event.AWAY: _row(
        (_A, Do.NOTHING), (_B, Do.PAUSE), (_P, Do.NOTHING), (_R, Do.NOTHING), (_B, Do.PAUSE), (_F, Do.NOTHING)
    ),
    Event.CONNECTED: _only_in(_S, _P, Do.PROBE),
    Event.OVERDUE: _only_in(_S, _P, Do.PROBE),
    Event.ACCEPTED: _only_in(_P, _R, Do.SERVE),
    Event.GONE: _row(
        (_A, Do.FORGET), (_A, Do.FORGET), (_A, Do.FORGET), (_A, Do.FORGET), (_B, Do.NOTHING), (_F, Do.NOTHING)
    ),
    Event.PAUSE_OVER: _row(
        (_A, Do.NOTHING), (_S, Do.NOTHING), (_P, Do.NOTHING), (_R, Do.NOTHING), (_A, Do.FORGET), (_A, Do.FORGET)
    ),
    Event.WANTED: _row(
        (_S, Do.ASK), (_S, Do.NOTHING), (_P, Do.SERVE), (_R, Do.SERVE), (_B, Do.NOTHING), (_F, Do.NOTHING)
    ),
}

TRANSITIONS: Final[Mapping[tuple[State, Event], Step]] = MappingProxyType(
    {(state, event): step for event, steps in _ROWS.items() for state, step in zip(State, steps, strict=True)}
)
