"""Lines of the audit log to spans: runs of records that follow each other, each with the hash that it should have.

A line is a record when it is exactly the canonical spelling of one (``protocol.record``) and a newline: a byte that
was changed anywhere in it shows. Records as the helper writes them are told by a pattern, which is three times as
fast as parsing and spelling them anew; every other line takes the long way, so that both give the same answer.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from protocol.record import canonical, record_hash


@dataclass(slots=True)
class Span:
    """Records ``first`` to ``last``, each in its place. ``prev`` is the first one's, ``digest`` the last one's."""

    first: int
    last: int
    prev: str
    digest: str


@dataclass(frozen=True, slots=True)
class Changed:
    """A record whose hash is not the one of its content. The next one names the one or the other as ``prev``."""

    seq: int
    prev: str
    stated: str
    digest: str


@dataclass(frozen=True, slots=True)
class NoRecord:
    """A line that is no record of this log; ``torn``: it has no end, as after a power cut."""

    torn: bool


Piece = Span | Changed | NoRecord


def pieces(lines: Iterable[bytes], wanted: frozenset[int], found: dict[int, set[str]]) -> Iterator[Piece]:
    """Give what the lines are; of the records in ``wanted``, ``found`` gets the hashes that were computed."""
    span: Span | None = None
    for line in lines:
        seq, prev, stated, digest = _quickly(line) or _thoroughly(line) or _NOTHING
        if seq in wanted:
            found.setdefault(seq, set()).add(digest)
        if span and stated == digest and seq == span.last + 1 and prev == span.digest:
            span.last, span.digest = seq, digest
            continue
        if span:
            yield span
            span = None
        if seq < 0:
            yield NoRecord(torn=not line.endswith(b"\n"))
        elif stated != digest:
            yield Changed(seq, prev, stated, digest)
        else:
            span = Span(seq, seq, prev, digest)
    if span:
        yield span


_Facts = tuple[int, str, str, str]
"""seq, prev, the hash that the record states, the hash that it should have."""
_NOTHING: Final[_Facts] = (-1, "", "", "")


def _quickly(line: bytes) -> _Facts | None:
    """Give the facts of a record in its usual spelling, None where it may have another."""
    match = _USUAL(line)
    if match is None:
        return None
    before, duration, stated, after, prev, seq, time = match.groups()
    for number in (duration, time):  # 1.50 is no spelling of ours
        if number is not None and repr(float(number)).encode() != number:
            return None
    digest = hashlib.sha256(before + after).hexdigest()
    return int(seq), prev.decode(), stated.decode(), digest


def _thoroughly(line: bytes) -> _Facts | None:
    """Give the facts of any record, None where the line is none."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or canonical(record) + b"\n" != line:
            return None
        seq, prev, stated = record["seq"], record["prev"], record["hash"]
        if type(seq) is not int or seq < 1 or not isinstance(prev, str) or not isinstance(stated, str):
            return None
        return seq, prev, stated, record_hash(record)
    except (ValueError, KeyError, RecursionError):
        return None


_TEXT: Final = rb'(?:null|"[ !#-\[\]-~]*+")'
_WHOLE: Final = rb"(?:null|0|-?[1-9][0-9]*+)"
_FLOAT: Final = rb"[0-9]++\.[0-9]++"
_USUAL: Final = re.compile(
    rb'(\{"decision":%(text)s,"duration_ms":(?:null|0|[1-9][0-9]*+|(%(float)s)),"event":%(text)s,)'
    rb'"hash":"([0-9a-f]{64})",'
    rb'("host":%(text)s,"op":%(text)s,"os_user":%(text)s,'
    rb'"peer":(?:null|\{"gid":%(whole)s,"pid":%(whole)s,"uid":%(whole)s\}),"pid":%(whole)s,'
    rb'"prev":"([0-9a-f]{64})","reason":%(text)s,"request_id":%(text)s,"seq":([1-9][0-9]{0,18}),'
    rb'"time":(%(float)s),"uid":%(whole)s,"user":%(text)s\})\n' % {b"text": _TEXT, b"whole": _WHOLE, b"float": _FLOAT}
).fullmatch
