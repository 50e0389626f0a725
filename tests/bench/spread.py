"""Median, percentile and spread of samples, and when a difference between two sets of samples means something.

No assumption about a distribution: latencies have a long tail, and what else the machine does has no shape at all.
"""

import math
import statistics
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

LEVEL: Final = 0.01
"""A difference is believed where chance alone would show it less often than this."""


class Verdict(StrEnum):
    """What two sets of samples say of each other."""

    SAME = "within the spread"
    LOWER = "lower"
    HIGHER = "higher"
    TOO_FEW = "too few runs to tell"


def median(samples: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(samples)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least so many percent of all are not above (the nearest rank).

    Nothing is interpolated: of fewer than 100 samples the 99th percentile is the largest.
    """
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def differ(before: Sequence[float], after: Sequence[float]) -> Verdict:
    """Return whether the samples after are all below or all above those before, and more than by chance.

    If both sets come from one distribution, all of one set lie on one side of all of the other with a probability of
    2 / C(n + m, n): 1 in 126 for five runs each, 1 in 10 for three, which is too often.
    """
    below, above = max(after) < min(before), min(after) > max(before)
    if not below and not above:
        return Verdict.SAME
    if 2 / math.comb(len(before) + len(after), len(before)) > LEVEL:
        return Verdict.TOO_FEW
    return Verdict.LOWER if below else Verdict.HIGHER
