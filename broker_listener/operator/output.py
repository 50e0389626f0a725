"""What the commands print: tables, lines and JSON.

Names, reasons and headers come from whoever can publish a job. Whatever is printed passes ``escaped`` or ``as_json``
first, so that none of it is obeyed by a terminal, ends a line or hides another: control characters, and those that
change the direction of writing, are shown as escapes, and what is long is cut. Colour carries no meaning of its own.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from textwrap import dedent, fill
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

UNLIMITED_WIDTH: Final = 10_000
"""Columns of what is no terminal: there a table is read by a program, or by a pager, and nothing is cut for it."""
MIN_WIDTH: Final = 10
"""Columns below which no value is cut: then the terminal wraps the line."""
JSON_VERSION: Final = 1
"""Of every form that ``--json`` prints. It grows when a key goes or changes its meaning, not when one is added."""
UNKNOWN: Final = "-"
"""Stands where a table has no value."""


class Column(NamedTuple):
    """A column of a table. One that may be cut gives way, with an ellipsis, where the terminal is narrow."""

    title: str
    right: bool = False
    may_be_cut: bool = False


def escaped(text: object, limit: int = 200) -> str:
    r"""Give a text as one line of printable characters: what is none becomes ``\x1b``, ``\u202e`` and the like."""
    whole = str(text)
    cut = whole if len(whole) <= limit else f"{whole[:limit]}..."
    return "".join(character if _is_harmless(character) else _escape(character) for character in cut)


def as_json(value: Mapping[str, object], *, indent: int | None = 2) -> str:
    """Return an object as JSON in printable ASCII, with the version of its form first; docs/json.md has the forms."""
    text = json.dumps({"v": JSON_VERSION, **value}, indent=indent, ensure_ascii=True, allow_nan=False)
    return text.replace("\x7f", "\\u007f")  # DEL is the one control character that json leaves as it is


def print_json(value: Mapping[str, object], *, indent: int | None = 2) -> None:
    """Print an object as JSON; with ``indent=None`` it is one line."""
    sys.stdout.write(as_json(value, indent=indent) + "\n")


def console(*, stderr: bool = False) -> Console:
    """Give the terminal, or what stands for it: rich's own mark-up, emoji and highlighting are off."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else UNLIMITED_WIDTH
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def print_line(text: str = "", style: str = "") -> None:
    """Print a line of our own making; the caller has escaped what is a stranger's in it."""
    if style:
        console().print(Text(text, style=style), soft_wrap=True)
    else:
        sys.stdout.write(text + "\n")


def filled(begin: str, text: str) -> str:
    """Break a line at words where the terminal ends, what follows below the text; a pipe gets it whole."""
    return fill(
        text,
        width=width(),
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_long_words=False,
        break_on_hyphens=False,
    )


def say(text: str) -> None:
    """Tell the one who called something that is no result: on stderr, each line escaped."""
    lines = "\n".join(escaped(line, limit=2000) for line in text.splitlines())
    sys.stderr.write(f"knime-peruser: {lines}\n")


@contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr what is waited for; what is given tells it anew. Without a terminal: a line for each change."""
    stderr = console(stderr=True)
    if stderr.is_terminal:
        with stderr.status(Text(text)) as status:
            yield lambda now: status.update(Text(now))
        return
    said = text
    if text:
        say(text)

    def tell(now: str) -> None:
        nonlocal said
        if now != said:
            said = now
            say(now)

    yield tell


def manual(text: str) -> str:
    """Give a text as click's help: it fills paragraphs, but leaves alone one that has an indented line."""
    paragraphs = dedent(text).strip().split("\n\n")
    return "\n\n".join(f"\b\n{one}" if "\n  " in one else one for one in paragraphs)


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], room: int, gap: int = 2) -> Table:
    """Give a table without lines for ``room`` columns, ``gap`` between two; None is ``-``, every value is escaped."""
    cells = [[UNKNOWN if value is None else escaped(value) for value in row] for row in rows]
    widths = _widths(columns, cells, room - gap * (len(columns) - 1))
    made = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold", show_edge=False)
    for column, characters in zip(columns, widths, strict=True):
        justify: JustifyMethod = "right" if column.right else "left"
        made.add_column(column.title, justify=justify, no_wrap=True, overflow="ellipsis", width=characters)
    for row in cells:
        made.add_row(*map(Text, row))
    return made


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]], room: int) -> list[int]:
    """Give each column what it needs; where that is too much, the widest of those that may be cut give way."""
    shown = [[column.title for column in columns], *cells]
    widths = [max(cell_len(row[place]) for row in shown) for place in range(len(columns))]
    may_be_cut = [place for place, column in enumerate(columns) if column.may_be_cut]
    while sum(widths) > room and may_be_cut:
        widest = max(may_be_cut, key=lambda place: widths[place])
        if widths[widest] <= MIN_WIDTH:
            break
        widths[widest] -= 1
    return widths


def width() -> int:
    """Give the columns of the terminal; of what is none, as many as anybody wants."""
    return console().width


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    console().print(table(columns, rows, width()))


def moment(seconds: float | None) -> str | None:
    """Give a time in this host's zone, to the second, with its offset; ``seconds``: Unix time."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(sep=" ", timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{seconds}"


def _is_harmless(character: str) -> bool:
    return character.isprintable() and character != "\\"


def _escape(character: str) -> str:
    return "\\\\" if character == "\\" else character.encode("unicode_escape").decode("ascii")
