"""Records of the audit log for who reads them: filtered, and the times of a filter.

A line that is no record is counted, not shown: ``audit verify`` names it. Values are shown as they are found; who
prints them escapes them.
"""

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from typing import Final

Record = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for: every condition that is given holds. Times are Unix seconds, ``until`` is not included."""

    user: str | None = None
    os_user: str | None = None
    event: str | None = None
    decision: str | None = None
    reason: str | None = None
    since: float | None = None
    until: float | None = None

    def matches(self, record: Record) -> bool:
        """Say whether a record is one of those that are looked for."""
        wanted = ("user", "os_user", "event", "decision", "reason")
        if any(getattr(self, key) not in (None, record.get(key)) for key in wanted):
            return False
        time = record.get("time")
        if not isinstance(time, int | float):
            return self.since is None and self.until is None
        return (self.since is None or time >= self.since) and (self.until is None or time < self.until)


@dataclass(slots=True)
class Reader:
    """Reads records; ``matches`` counts those that were given, ``no_records`` the lines that are none."""

    query: Query
    matches: int = 0
    no_records: int = 0

    def matching(self, lines: Iterable[bytes]) -> Iterator[Record]:
        """Give the records that match."""
        for line in lines:
            if self._cannot_match(line):
                continue
            try:
                record = _DECODER.decode(line.decode("utf-8"))
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                self.no_records += 1
            elif self.query.matches(record):
                self.matches += 1
                yield record

    def _cannot_match(self, line: bytes) -> bool:
        """Pass over, without parsing it, a record that does not have a name that is looked for: ten times as fast."""
        names = (self.query.user, self.query.os_user)
        return any(name is not None and json.dumps(name).encode() not in line for name in names)


def last_of(records: Iterator[Record], count: int) -> Iterable[Record]:
    """Give the last ``count`` records, all of them where it is 0."""
    return deque(records, maxlen=count) if count else records


def parse_time(text: str, *, now: float, end: bool = False) -> float:
    """Give the Unix time that a text means: a date, a date and time, or how long ago, as in ``90m``, ``2h``, ``3d``.

    A date or time without a zone is the host's. A date alone is its beginning, or with ``end`` the day after's.

    Raises:
        ValueError: it is none of these.
    """
    if match := _AGO.fullmatch(text):
        return now - int(match[1]) * _SECONDS[match[2]]
    moment = datetime.fromisoformat(text)
    if end and _DATE.fullmatch(text):
        moment += timedelta(days=1)
    return moment.timestamp()


def _no_json(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if isfinite(number) else _no_json(text)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_json, parse_float=_finite)
"""For what can be printed as JSON again: Python's own reads NaN, Infinity and 1e999, which no other reader takes."""
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO: Final = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}", re.ASCII)
