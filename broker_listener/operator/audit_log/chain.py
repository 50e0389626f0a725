"""The chain of an audit log, judged: which record was changed, replaced, taken away or moved, by its number.

What it proves: accidents, and edits by those who cannot write the whole file anew. Root can, and a log whose tail was
cut off is a good chain: both show only against anchors that were kept elsewhere (``anchors.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, assert_never

from broker_listener.operator.audit_log.files import LogFile, lines
from broker_listener.operator.audit_log.spans import Changed, NoRecord, Piece, Span, pieces
from protocol.record import FIRST_PREV

MOST_FAULTS: Final = 1000
"""Faults that are kept; more are counted."""


class Kind(StrEnum):
    """What may be wrong with a log."""

    CHANGED = "changed"
    REPLACED = "replaced"
    MISSING = "missing"
    OUT_OF_ORDER = "out_of_order"
    TWICE = "twice"
    NO_RECORD = "no_record"
    TORN = "torn"
    REWRITTEN = "rewritten"
    CUT_OFF = "cut_off"


class Fault(NamedTuple):
    """One fault: the number of the record, that of the last one where it is several, and what was seen."""

    record: int
    last: int
    kind: Kind
    seen: str


@dataclass(slots=True)
class Chain:
    """What was found so far. ``first`` is the number that the log should begin with."""

    first: int
    records: int = 0
    next: int = 0
    digest: str = ""
    found: dict[int, set[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    faults_not_kept: int = 0
    _links: frozenset[str] = frozenset()
    _no_records: list[NoRecord] = field(default_factory=list)
    _missing: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.next = self.first
        self._links = frozenset({FIRST_PREV}) if self.first == 1 else frozenset()

    def add(self, piece: Piece) -> None:
        """Judge the next piece of the log."""
        match piece:
            case Span():
                self._add_span(piece)
            case Changed():
                self._add_changed(piece)
            case NoRecord():
                self._no_records.append(piece)
            case _:
                assert_never(piece)

    def finish(self) -> None:
        """Judge what only the end shows, and sort the faults by record."""
        self._settle_no_records(None)
        for first, last in self._missing:
            self._fault(first, last, Kind.MISSING, f"record {last + 1} follows record {first - 1}")
        self.faults.sort()

    def anchored(self, anchors: Sequence[tuple[int, str]]) -> None:
        """Hold the log against anchors: number and hash of records, as the helper once logged them."""
        right = 0
        for seq, digest in sorted(set(anchors)):
            if seq >= self.next:
                seen = f"an anchor names record {seq}; the log ends with record {self.next - 1}: its end was cut off"
                self._fault(self.next, seq, Kind.CUT_OFF, seen)
            elif seq in self.found and digest not in self.found[seq]:
                seen = f"not the record that an anchor names: the log was rewritten from record {right + 1} or later on"
                self._fault(seq, seq, Kind.REWRITTEN, seen)
            elif seq in self.found:
                right = seq
        self.faults.sort()

    def _add_span(self, span: Span) -> None:
        self.records += span.last - span.first + 1
        self._settle_no_records(span.first)
        if span.first < self.next:
            self._behind(span)
            return
        if span.first > self.next:
            self._missing.append((self.next, span.first - 1))
        elif self._links and span.prev not in self._links:
            before = max(span.first - 1, 1)
            seen = f"record {span.first} was written after another one: it was rewritten, its own hash included"
            self._fault(before, before, Kind.REPLACED, seen)
        self.next, self.digest, self._links = span.last + 1, span.digest, frozenset({span.digest})

    def _add_changed(self, changed: Changed) -> None:
        """Judge a record whose own number may be what was changed: ``prev`` tells its place, too."""
        if not self._no_records and (changed.seq == self.next or changed.prev in self._links):
            self.records += 1
            self._fault(self.next, self.next, Kind.CHANGED, "its hash is not the one of its content: it was changed")
            self.next, self.digest = self.next + 1, changed.digest
            self._links = frozenset({changed.digest, changed.stated})
        else:
            self._no_records.append(NoRecord(torn=False))

    def _behind(self, span: Span) -> None:
        """Judge records that stand after a later one."""
        for place, (first, last) in enumerate(self._missing):
            if first <= span.first and span.last <= last:
                around = ((first, span.first - 1), (span.last + 1, last))
                self._missing[place : place + 1] = [(one, other) for one, other in around if one <= other]
                seen = f"out of order: after record {self.next - 1}"
                self._fault(span.first, span.last, Kind.OUT_OF_ORDER, seen)
                return
        self._fault(span.first, span.last, Kind.TWICE, f"again after record {self.next - 1}")

    def _settle_no_records(self, following: int | None) -> None:
        """Say which records the lines stood for that are none, as far as the next one tells."""
        stood_for = [] if following is None else range(self.next, following)
        for place, line in enumerate(self._no_records):
            if len(stood_for) == len(self._no_records):
                self._fault(stood_for[place], stood_for[place], Kind.NO_RECORD, "its line is no record any more")
            elif line.torn:
                seen = f"an unfinished line after record {self.next - 1}, as a power cut leaves it"
                self._fault(self.next, self.next, Kind.TORN, seen)
            else:
                seen = f"a line that is no record stands after record {self.next - 1}"
                self._fault(self.next, self.next, Kind.NO_RECORD, seen)
        if following is not None and len(stood_for) == len(self._no_records) > 0:
            self.next, self._links = following, frozenset()
        self._no_records = []

    def _fault(self, record: int, last: int, kind: Kind, seen: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(Fault(record, last, kind, seen))
        else:
            self.faults_not_kept += 1


def verified(files: Sequence[LogFile], first: int, anchors: Sequence[tuple[int, str]]) -> Chain:
    """Judge a log that should begin with record ``first``."""
    chain, wanted = Chain(first), frozenset(seq for seq, _ in anchors)
    for file in files:
        for piece in pieces(lines(file), wanted, chain.found):
            chain.add(piece)
    chain.finish()
    chain.anchored(anchors)
    return chain
