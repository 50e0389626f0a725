"""Records of the audit log as lines for people: one a record, its columns where the ones before had theirs.

The widths are set before the first record is known, since there may be a million of them, or the next one may come
tomorrow. What is longer than its column pushes the rest to the right, what is wider than the terminal goes on below;
nothing is left out.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from textwrap import wrap
from typing import Final

from broker_listener.operator.audit_log.records import Record
from broker_listener.operator.output import escaped

_SHOWN_FIRST: Final = ("decision", "reason")
_FACTS: Final = ("op", "os_user", "uid", "pid")


_INDENT: Final = " " * 30


def lines(records: Iterable[Record], *, width: int, headed: bool = True) -> Iterator[str]:
    """Give a heading and a line for each record; ``width``: columns of the terminal."""
    if headed:
        zone = datetime.now(UTC).astimezone().strftime("%z")
        yield f"{f'time {zone}':<19}  {'record':>7}  {'event':<9}  {'user':<12}  what"
    for record in records:
        user = "-" if record.get("user") is None else escaped(record["user"])
        event = escaped(record.get("event"))
        line = f"{_time(record):<19}  {escaped(record.get('seq')):>7}  {event:<9}  {user:<12}  {_what(record)}".rstrip()
        yield line if len(line) <= width else "\n".join(wrap(line, width, subsequent_indent=_INDENT))


def _time(record: Record) -> str:
    seconds = record.get("time")
    try:
        moment = datetime.fromtimestamp(seconds, UTC).astimezone()  # type: ignore[arg-type]  # that is the question
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _what(record: Record) -> str:
    words = [escaped(record[key]) for key in _SHOWN_FIRST if record.get(key) is not None]
    words += [f"{key}={escaped(record[key])}" for key in _FACTS if record.get(key) is not None]
    duration = record.get("duration_ms")
    if isinstance(duration, int | float):
        words.append(f"{duration / 1000:.3f}s")
    peer = record.get("peer")
    if isinstance(peer, dict):
        words.append(f"by uid={escaped(peer.get('uid'))} pid={escaped(peer.get('pid'))}")
    return " ".join(words)
