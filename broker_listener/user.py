"""What the machine keeps of one user. Plain data: the rules are in ``transitions`` and ``hand_over``."""

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from broker_listener.consuming import Delivery
from broker_listener.host_fault import Blame
from broker_listener.host_messages import UserState
from broker_listener.pacing import Pace, Sight
from broker_listener.transitions import State


class Held(NamedTuple):
    """A job that waits here; of one user they sort by the order in which they were first seen."""

    seq: int
    tag: int  # decides between two that cannot be told apart
    returned: bool
    since: float
    delivery: Delivery
    sight: Sight

    @property
    def size(self) -> int:
        """The bytes that it takes."""
        return len(self.delivery.body) + len(self.delivery.properties)


class Executor(NamedTuple):
    """The executor that the helper told of; ``known_at`` is when, by our clock.

    ``heard`` is the number of the last word of the helper that named it (``helper.Heard``).
    """

    uid: int
    pid: int
    cgroup: int | None
    known_at: float
    heard: int


@dataclass(slots=True)
class StartRecord:
    """How starts of the user went, and whose fault it is that they failed."""

    strikes: int = 0
    """Starts in a row that failed."""
    struck_since: float = inf
    """Since when they fail by the user's own fault; inf if they do not, or if it is the host's."""
    deaths: int = 0
    """Executors in a row that ran and died before they were ready, by no fault of the host."""
    deaths_voided: int = 0
    """``HostFaults.deaths_voided`` as it was when these were counted."""
    blame: Blame | None = None
    """Whose fault the last answer was, or the last end of an executor; None if nobody's."""
    probing: bool = False
    """True if it is the user's turn to be started on a host that is at fault."""


class User:
    """One user: state, held jobs, pace, and what is known of the executor. Times are those that events brought."""

    __slots__ = (
        "active_at",
        "asked_at",
        "asking",
        "away",
        "changed_at",
        "elsewhere",
        "executor",
        "failures",
        "gone_heard",
        "gone_pid",
        "grace_jobs",
        "handed_over",
        "held",
        "held_bytes",
        "held_until",
        "hung",
        "jobs",
        "name",
        "pace",
        "parked",
        "queued",
        "reason",
        "refusal",
        "returned",
        "returns",
        "starts",
        "state",
        "surplus",
        "told",
        "turned_back",
        "under_way",
        "unknown_asks",
        "unknown_since",
        "until",
        "wake_at",
        "wanted_until",
        "was_ready",
        "watched",
    )

    def __init__(self, name: str, now: float = 0.0) -> None:
        self.name = name
        self.state = State.ABSENT
        self.held: list[Held] = []
        """A heap; ``hold``, ``take_oldest`` and ``keep`` change it."""
        self.held_bytes = 0
        self.surplus = 0  # how many more of the user's jobs wait to go back, without their bodies
        self.returned = 0  # how many of the held ones have come back
        self.under_way = 0  # hand-overs without an answer of the broker
        self.failures = 0  # hand-overs in a row that the broker did not take
        self.queued = False
        """Whether the user stands in one of the lines of ``Turns``."""
        self.pace = Pace()
        self.executor: Executor | None = None
        self.was_ready = self.watched = False
        self.elsewhere = False
        """Whether another host has an executor of the user that is ready."""
        self.wanted_until = -inf
        """Until when an executor is to be started though no job is held here: another host has jobs of the user."""
        self.told = UserState.GONE
        """What other hosts were told of the user's executor here."""
        self.gone_pid = 0
        """The executor that ended last; an answer that was written before must not bring it back."""
        self.gone_heard = 0  # the number of the notice of its end
        self.asking = False
        """Whether a request is under way, or waits for its turn."""
        self.turned_back = 0  # requests in a row for which the helper had no room
        self.hung = False
        """Whether the last request took all of its time: the helper, or what it asked, did not answer."""
        self.asked_at = -inf
        self.away = False
        """Whether it was the helper's absence that began the pause."""
        self.unknown_asks = self.grace_jobs = 0
        self.starts = StartRecord()
        self.unknown_since = inf
        self.refusal = ("", "")
        """Reason and detail of what is parked in FAILED."""
        self.until = inf
        """The end of a pause, or the time of a state's next look."""
        self.held_until = inf
        """No held job has to go back before."""
        self.wake_at = inf
        self.active_at = 0.0
        self.changed_at = now
        """When the state changed last."""
        self.reason: str | None = None
        """Why the helper gave no executor when it was asked last; None where it gave one."""
        self.handed_over = self.returns = self.parked = 0
        """Hand-overs that the broker took, jobs that came back, and parked ones: since this record is there."""
        self.jobs = 0
        """Jobs that were handed over, each counted once however often it came back and was handed over again."""

    @property
    def idle(self) -> bool:
        """Whether the record holds nothing that others rely on."""
        return not (self.held or self.surplus or self.under_way or self.asking or self.queued)

    def hold(self, held: Held) -> None:
        """Hold one more job."""
        heappush(self.held, held)
        self.held_bytes += held.size
        self.returned += held.returned

    def take_oldest(self) -> Held:
        """Hold the job that was seen first no longer."""
        held = heappop(self.held)
        self.held_bytes -= held.size
        self.returned -= held.returned
        return held

    def keep(self, jobs: Iterable[Held]) -> None:
        """Hold these of the jobs and no others."""
        self.held = list(jobs)
        heapify(self.held)
        self.held_bytes = sum(held.size for held in self.held)
        self.returned = sum(held.returned for held in self.held)
