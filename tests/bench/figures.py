"""What a run of the benches found: each figure with every sample, so that a later run is compared with all of them.

``Report.to_json`` and ``from_json`` are the file of ``--json``. What is read is checked: a file that was cut or edited
raises ``NoReport`` and is never half believed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, cast, get_args

from tests.bench.spread import median

FORMAT: Final = 1
Unit = Literal["ms", "us", "s", "MB", "per s", "times", "% of a core", "count"]
Better = Literal["lower", "higher"]


class NoReport(Exception):
    """The text is not a report of this format."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. ``samples`` are one value a run, in the order of the runs.

    ``bare``: of the broker or a library alone, so that it tells of the machine and not of us. ``bound``: a sample of
    this or more was cut off when its bench stopped to wait, and is larger by an unknown amount.
    """

    what: str
    unit: Unit
    samples: tuple[float, ...]
    better: Better = "lower"
    bare: bool = False
    goal: float | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        """Refuse a figure that says nothing."""
        if not self.samples:
            raise ValueError(f"no samples: {self.what}")

    @property
    def median(self) -> float:
        """The figure itself."""
        return median(self.samples)

    @property
    def is_cut(self) -> bool:
        """True if the median is the bound: the true value is larger."""
        return self.bound is not None and self.median >= self.bound

    @property
    def reaches_goal(self) -> bool | None:
        """True if the median is as good as the goal, None if there is no goal."""
        if self.goal is None:
            return None
        return self.median <= self.goal if self.better == "lower" else self.median >= self.goal


@dataclass(frozen=True, slots=True)
class Measured:
    """One bench of the run: its figures, or why it has none. ``load`` is the machine's, before it began.

    ``broke``: something is wrong, and not only that the machine cannot give what the bench stands on.
    """

    bench: str
    load: float
    seconds: float
    figures: tuple[Figure, ...]
    without: str | None = None
    broke: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """One run of the command. ``machine``: what it ran on, in order, for the first line of the table."""

    machine: Mapping[str, str]
    benches: tuple[Measured, ...]

    def to_json(self) -> str:
        """Return the text of the file."""
        document = {"format": FORMAT, "machine": dict(self.machine), "benches": [asdict(one) for one in self.benches]}
        return json.dumps(document, indent=1) + "\n"

    def by_key(self) -> dict[tuple[str, str], Figure]:
        """Return each figure under its bench and its text."""
        return {(one.bench, figure.what): figure for one in self.benches for figure in one.figures}


def from_json(text: str) -> Report:
    """Return the report that a file holds; raises NoReport."""
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise NoReport(f"format {document['format']!r}, {FORMAT} was expected")
        machine = {str(key): str(value) for key, value in document["machine"].items()}
        return Report(machine, tuple(_measured(one) for one in document["benches"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NoReport(f"{type(error).__name__}: {error}") from error


def _measured(document: dict[str, Any]) -> Measured:
    figures = tuple(_figure(one) for one in document["figures"])
    without = None if document["without"] is None else str(document["without"])
    load, seconds = _finite(document["load"]), _finite(document["seconds"])
    return Measured(str(document["bench"]), load, seconds, figures, without, bool(document["broke"]))


def _figure(document: dict[str, Any]) -> Figure:
    if document.keys() != {field.name for field in fields(Figure)}:
        raise NoReport(f"keys of a figure: {sorted(document)}")
    if document["unit"] not in get_args(Unit) or document["better"] not in get_args(Better):
        raise NoReport(f"unit or direction of {document['what']!r}")
    return Figure(
        what=str(document["what"]),
        unit=cast("Unit", document["unit"]),
        samples=tuple(_finite(sample) for sample in document["samples"]),
        better=cast("Better", document["better"]),
        bare=bool(document["bare"]),
        goal=_number(document["goal"]),
        bound=_number(document["bound"]),
    )


def _number(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise NoReport(f"a sample is {number}")
    return number
