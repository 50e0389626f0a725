"""Retrying and dropping: which messages it is done to, what is counted, and where it ends early."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.output import progress, say
from broker_listener.operator.parking.interrupts import between_steps
from broker_listener.operator.parking.manuals import WORN
from broker_listener.operator.parking.message import Criteria, NotAccepted, NotRestorable
from broker_listener.operator.parking.shown import Summary

if TYPE_CHECKING:
    from broker_listener.operator.parking.queue import ParkedQueue
    from broker_listener.operator.parking.walk import Taken, Walk

TOLD: Final = 500
"""Messages between two lines of progress."""
DONE: Final = {"retry": "retried", "drop": "dropped"}
_NAMED: Final = 5


@dataclass(slots=True)
class Counts:
    """What was done, or would be."""

    done: int = 0
    in_doubt: int = 0
    """Left alone."""
    not_restorable: int = 0
    stopped: str | None = None
    summary: Summary = field(default_factory=Summary)

    def add(self, taken: "Taken") -> None:
        """Count one more that it was done to."""
        self.done += 1
        self.summary.add(taken.facts)

    def as_object(self) -> dict[str, object]:
        """Give it for JSON."""
        left = {"left_in_doubt": self.in_doubt, "left_not_restorable": self.not_restorable}
        return {"done": self.done, **left, "stopped": self.stopped}

    @property
    def outcome(self) -> Outcome:
        """Give the exit status: what was left is a finding."""
        left = self.in_doubt or self.not_restorable or self.stopped
        return Outcome.FINDING if left or not self.done else Outcome.DONE


def looked_at(queue: "ParkedQueue", verb: str, wanted: Criteria, limit: int | None) -> Counts:
    """Count what would be done."""
    counts = Counts()
    with queue.walked(changing=False) as walk:
        for taken in _meant(walk, verb, wanted, limit, counts):
            counts.add(taken)
            if taken.worn:
                say(WORN)
                break
    return counts


def changed(queue: "ParkedQueue", verb: str, wanted: Criteria, limit: int | None) -> Counts:
    """Do it, and count it; raises Stopped, saying how far it came."""
    counts = Counts()
    try:
        _change(queue, verb, wanted, limit, counts)
    except Stopped as stopped:
        how_far = f"{counts.done} had been {DONE[verb]}; nothing is lost: see knime-peruser parked list, --in-doubt"
        raise Stopped(stopped.outcome, f"{stopped}; {how_far}") from None
    return counts


def _change(queue: "ParkedQueue", verb: str, wanted: Criteria, limit: int | None, counts: Counts) -> None:
    with (
        progress("") as tell,
        between_steps(lambda: say("ending after this message; once more to end at once")) as is_over,
        queue.walked(changing=True) as walk,
    ):
        for taken in _meant(walk, verb, wanted, limit, counts):
            try:
                walk.retry(taken) if verb == "retry" else walk.drop(taken)
            except NotAccepted as error:
                counts.stopped = str(error)
                break
            counts.add(taken)
            if counts.done % TOLD == 0:
                tell(f"{counts.done} {DONE[verb]}")
            if is_over():
                counts.stopped = "it was interrupted"
                break


def _meant(walk: "Walk", verb: str, wanted: Criteria, limit: int | None, counts: Counts) -> Iterator["Taken"]:
    """Give the messages that it can be done to; a retry leaves those in doubt alone unless they are asked for."""
    for taken in walk.taken():
        if not wanted.match(taken.facts, in_doubt=taken.in_doubt):
            continue
        if verb == "retry" and taken.in_doubt and not wanted.in_doubt:
            counts.in_doubt += 1
        elif verb == "drop" or _is_restorable(walk, taken, counts):
            yield taken
            if counts.done == limit:
                return


def _is_restorable(walk: "Walk", taken: "Taken", counts: Counts) -> bool:
    try:
        walk.properties_of(taken)
    except NotRestorable as error:
        counts.not_restorable += 1
        if counts.not_restorable <= _NAMED:
            say(f"{taken.facts.id} cannot be retried: {error}")
        return False
    return True
