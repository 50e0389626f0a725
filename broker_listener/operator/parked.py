"""``knime-peruser parked``: look at the messages that the listener put aside, publish them again, or drop them.

What a message holds is a stranger's: it is shown escaped. What is done to one is walk.py's matter; here is what is
asked for, asked back, and said.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from broker_listener.operator import configuration
from broker_listener.operator.audit_log.records import parse_time
from broker_listener.operator.outcome import Outcome
from broker_listener.operator.output import escaped, manual, print_json, print_line, print_table, say
from broker_listener.operator.parking import manuals, shown
from broker_listener.operator.parking.changes import DONE, Counts, changed, looked_at
from broker_listener.operator.parking.message import MIN_ID, Criteria
from broker_listener.operator.unprivileged import operator_connection
from protocol.settings import shown_key

if TYPE_CHECKING:
    from broker_listener.operator.parking.queue import ParkedQueue
    from broker_listener.operator.parking.walk import Taken, Walk

_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_Command = Callable[..., Outcome]


@click.group("parked", help=manual(manuals.PARKED))
def command() -> None:
    """Hold the four."""


def _criteria(function: _Command) -> _Command:
    """Add the options that say which messages are meant."""
    for option in (
        click.option("--in-doubt", is_flag=True, help="Those whose retry was interrupted, see above."),
        click.option("--younger-than", "after", metavar="TIME", help="Parked after: 2h, 7d, or a date and time."),
        click.option("--older-than", "before", metavar="TIME", help="Parked before: 2h, 7d, or a date and time."),
        click.option("--reason", help="Such as start_failed, unknown_user, not_json."),
        click.option("--user", help="Whose bodies name this KNIME user."),
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        function = option(function)
    return function


@command.command("list", help=manual(manuals.LIST))
@_criteria
@click.option("--limit", "-n", type=click.IntRange(1, 100_000), default=100, show_default=True, help="The oldest N.")
@_JSON
@click.pass_obj
def list_(config_dir: Path, /, limit: int, as_json: bool, **asked: Any) -> Outcome:  # noqa: FBT001 - click's flag
    """List messages."""
    wanted = _wanted(**asked)
    with _queue(config_dir) as queue, queue.walked(changing=False) as walk:
        found = [(shown.as_object(taken), shown.row(taken)) for taken in _some(walk, wanted, limit)]
    if as_json:
        for made, _ in found:
            print_json(made, indent=None)
    elif found:
        print_table(shown.columns(), (row for _, row in found))
    say(f"{len(found)} shown of {walk.messages} in {queue.names.parked}")
    return Outcome.DONE if found else Outcome.FINDING


@command.command("show", help=manual(manuals.SHOW))
@_criteria
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=10, show_default=True, help="The oldest N.")
@click.option("--body", "with_body", is_flag=True, help="The beginning of the body, too.")
@click.option("--body-bytes", type=click.IntRange(1, 2**20), default=1000, show_default=True, help="How much of it.")
@_JSON
@click.pass_obj
def show(config_dir: Path, /, limit: int, with_body: bool, body_bytes: int, as_json: bool, **asked: Any) -> Outcome:  # noqa: FBT001 - click's flags
    """Show messages."""
    wanted, size = _wanted(**asked), body_bytes if with_body else 0
    made = shown.whole_line if as_json else shown.page
    with _queue(config_dir) as queue, queue.walked(changing=False) as walk:
        found = [made(taken, size) for taken in _some(walk, wanted, limit)]
    print_line(("\n" if as_json else "\n\n").join(found))
    say(f"{len(found)} shown of {walk.messages} in {queue.names.parked}")
    return Outcome.DONE if found else Outcome.FINDING


def _changing(function: _Command) -> _Command:
    """Add the options of what changes the queue."""
    for option in (
        _JSON,
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--limit", "-n", type=click.IntRange(1), help="At most the oldest N that match; default: all."),
        click.option("--all", "every", is_flag=True, help="Every message; expected where nothing else says which."),
    ):
        function = option(function)
    return function


@command.command("retry", help=manual(manuals.RETRY))
@_criteria
@_changing
@click.pass_obj
def retry(config_dir: Path, /, **asked: Any) -> Outcome:
    """Publish messages again."""
    return _change(config_dir, "retry", **asked)


@command.command("drop", help=manual(manuals.DROP))
@_criteria
@_changing
@click.pass_obj
def drop(config_dir: Path, /, **asked: Any) -> Outcome:
    """Drop messages."""
    return _change(config_dir, "drop", **asked)


def _change(  # noqa: PLR0913 - click's options
    config_dir: Path,
    verb: str,
    *,
    every: bool,
    limit: int | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    **asked: Any,
) -> Outcome:
    wanted = _wanted(**asked)
    if wanted == Criteria() and not every:
        raise click.UsageError("which messages? An ID, --user, --reason, --older-than, ... or --all is expected")
    if not (yes or dry_run or sys.stdin.isatty()):
        raise click.UsageError("nobody can be asked here: --yes or --dry-run is expected")
    with _queue(config_dir) as queue:
        counts = Counts()
        if dry_run or not yes:
            counts = looked_at(queue, verb, wanted, limit)
        if not dry_run and (yes or counts.done):
            if not yes:
                click.confirm(f"{_QUESTIONS[verb]} {counts.summary}?", abort=True, err=True)
            counts = changed(queue, verb, wanted, limit)
        if as_json:
            print_json({"action": verb, "dry_run": dry_run, **counts.as_object()})
        else:
            _say(counts, verb, queue.names.parked, dry_run=dry_run)
    return counts.outcome


def _some(walk: "Walk", wanted: Criteria, limit: int) -> Iterator["Taken"]:
    """Give the oldest messages that match."""
    found = 0
    for taken in walk.taken():
        if wanted.match(taken.facts, in_doubt=taken.in_doubt):
            yield taken
            found += 1
        if taken.worn:
            say(manuals.WORN)
            return
        if found == limit:
            return


def _say(counts: Counts, verb: str, name: str, *, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    print_line(f"{would}{DONE[verb]}: {counts.summary}" if counts.done else f"no message of {name} was {DONE[verb]}")
    if counts.in_doubt:
        print_line(f"left as they are: {counts.in_doubt} in doubt, whose retry was interrupted; --help says what to do")
    if counts.not_restorable:
        print_line(f"left as they are: {counts.not_restorable} that cannot be retried")
    if counts.stopped:
        print_line(f"it ended early: {escaped(counts.stopped, 500)}; nothing is lost, the rest is in the queue")


def _wanted(  # noqa: PLR0913 - click's options
    *, ids: tuple[str, ...], user: str | None, reason: str | None, before: str | None, after: str | None, in_doubt: bool
) -> Criteria:
    now = time.time()
    for one in ids:
        if len(one) < MIN_ID or set(one) - set("0123456789abcdef"):
            raise click.BadParameter(
                f"{shown_key(one)} is no id: knime-peruser parked list shows them", param_hint="ID"
            )
    times = _time("--older-than", before, now), _time("--younger-than", after, now)
    return Criteria(ids, user, reason, *times, in_doubt)


def _time(option: str, text: str | None, now: float) -> float | None:
    if text is None:
        return None
    try:
        return parse_time(text, now=now)
    except (ValueError, OverflowError):
        message = f"{shown_key(text)} is no time: 2h, 7d, 2026-03-03 and 2026-03-03T14:00 are some"
        raise click.BadParameter(message, param_hint=option) from None


@contextmanager
def _queue(config_dir: Path) -> Iterator["ParkedQueue"]:
    loaded = configuration.load(config_dir)
    with operator_connection(loaded) as session:
        from broker_listener.operator.parking.queue import ParkedQueue  # noqa: PLC0415 - it needs pika, see there

        yield ParkedQueue(session, loaded.listener.broker)


_QUESTIONS: Final = {"retry": "Publish again", "drop": "Drop for good"}
