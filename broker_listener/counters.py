"""What the listener has done since its start, counted in one place: ``status`` and the metrics read it, nobody else.

Numbers and nothing else: no user, no name, nothing of a message. Counting is a few additions for each message, so the
cost is the same whether anybody looks or not.
"""

from bisect import bisect_left
from collections import Counter
from typing import Final

LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds: a running executor's jobs take about a millisecond, a start some 10 to 20 s."""


class Counters:
    """Counts since the start of the process. ``parked`` is by reason; reasons are a closed list."""

    __slots__ = (
        "answers",
        "handed_over",
        "held_too_long",
        "latency",
        "latency_sum",
        "parked",
        "published_again",
        "received",
        "returned",
    )

    def __init__(self) -> None:
        self.received = 0
        """Messages that the broker delivered, those that it delivered again among them."""
        self.returned = 0
        """Of these, jobs that had been handed over before."""
        self.handed_over = 0
        """Hand-overs that the broker took: one for each time that a job goes round."""
        self.held_too_long = 0
        """Messages that went back to the queue after ``max_hold``."""
        self.published_again = 0
        """Messages that were redelivered so often that they were published to their queue again."""
        self.parked: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        """Of the helper: running, started, a reason, or none."""
        self.latency = [0] * (len(LATENCY_BUCKETS) + 1)
        """First hand-overs by seconds from the arrival to the broker's confirm; the last bucket has no upper bound."""
        self.latency_sum = 0.0

    def handed_over_after(self, seconds: float, *, first: bool) -> None:
        """Count a hand-over, and how long the job waited where it is its first."""
        self.handed_over += 1
        if first:
            self.latency[bisect_left(LATENCY_BUCKETS, seconds)] += 1
            self.latency_sum += seconds
