"""``knime-peruser audit``: show what the helper recorded, and verify that it is what was recorded.

It reads the log's files and nothing else; root and members of the log's group (``adm``) can. It changes nothing.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import click

from broker_listener.operator import configuration
from broker_listener.operator.audit_log import files, table
from broker_listener.operator.audit_log.anchors import Anchor, anchors_in
from broker_listener.operator.audit_log.chain import Chain, Fault, Kind, verified
from broker_listener.operator.audit_log.follow import following
from broker_listener.operator.audit_log.records import Query, Reader, Record, last_of, parse_time
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.output import as_json, manual, print_json, print_line, say, width
from protocol.settings import shown_key

_LOG: Final = click.option(
    "--log",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    help="Another log, or a copy; default: helper.toml's.",
)
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(
    "audit",
    help=manual(
        """\
        Read the audit log, and verify it.

        The root helper records every request, start and end in it before anything follows from it. It is read by root
        and members of group adm.
        """
    ),
)
def command() -> None:
    """Hold the two."""


@command.command(
    help=manual(
        """\
        Show records: the last ones, or those that match every condition that is given, rotated files included.

        TIME is a date (2026-03-03), a date and time (2026-03-03T14:00, with or without a zone; this host's else), or
        how long ago: 90s, 30m, 2h, 7d. A date alone means its beginning; after --until, its end.

        examples:
          knime-peruser audit show --event started --since 2026-03-03 --until 2026-03-03
                        who ran what as whom on 3 March
          knime-peruser audit show --user alice --since 2h
          knime-peruser audit show --decision refused --lines 0 --json

        exit status:
          0  done
          1  no record matches, there is no log, or a line of it is no record
          2  wrong usage, or the configuration cannot be used
          4  not permitted
        """
    )
)
@click.option("--user", help="Of this KNIME user.")
@click.option("--os-user", help="Of this account.")
@click.option("--event", help="Such as request, started, result, exited, stopped, drain, refused_peer.")
@click.option("--decision", help="Such as started, running, refused, failed, stopping.")
@click.option("--reason", help="Of a refusal or failure, such as unknown_user.")
@click.option("--since", metavar="TIME", help="Not before.")
@click.option("--until", metavar="TIME", help="Before.")
@click.option("--lines", "-n", type=click.IntRange(0), default=100, show_default=True, help="The last N; 0: all.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is recorded from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print each record as one line of JSON.")
@_LOG
@click.pass_obj
def show(  # noqa: PLR0913, PLR0917 - one argument an option
    config_dir: Path,
    user: str | None,
    os_user: str | None,
    event: str | None,
    decision: str | None,
    reason: str | None,
    since: str | None,
    until: str | None,
    lines: int,
    follow: bool,  # noqa: FBT001 - click's flags
    as_json: bool,  # noqa: FBT001
    log: Path | None,
) -> Outcome:
    """Show records."""
    query = Query(user, os_user, event, decision, reason, _time("since", since), _time("until", until))
    path, reader = _path(config_dir, log), Reader(query)
    shown = _json_lines if as_json else partial(table.lines, width=width())
    with files.opened(path) as there:
        for text in shown(last_of(reader.matching(line for file in there for line in files.lines(file)), lines)):
            print_line(text)
        if follow:
            sys.stdout.flush()
            with suppress(KeyboardInterrupt):  # that is how one ends it
                for text in shown(reader.matching(following(path, there)), headed=False):
                    print_line(text)
                    sys.stdout.flush()
    if reader.no_records:
        say(f"{reader.no_records} lines of {path} are no records: knime-peruser audit verify names them")
    if not reader.matches:
        say(f"no record of {path} matches")
    return Outcome.DONE if reader.matches and not reader.no_records else Outcome.FINDING


@command.command(
    help=manual(
        """\
        Verify the whole log, rotated files included: that no record was changed, replaced, taken away or moved. Each
        fault is named by the number of its record.

        The chain shows accidents, and edits by those who cannot write the whole file anew. Root can; and a log whose
        end was cut off is a good chain. Both show with anchors alone: the helper logs the number and hash of its last
        record, "audit-anchor SEQ HASH", at its start, at each rotation, every 1,000 records and every 10 minutes. Keep
        them where root of this host cannot change them, and give them with --anchors. What comes after the last anchor
        is not proved.

        Files older than audit.keep_days are removed by the helper: such a log begins with a later record than 1, and
        that is said. --first says with which one it should begin, where older files were moved away.

        examples:
          knime-peruser audit verify
          journalctl -u knime-root-helper -o cat | knime-peruser audit verify --anchors -
                        with the anchors of this host's own journal
          knime-peruser audit verify --log /archive/host1/audit.jsonl --anchors /archive/host1.journal

        exit status:
          0  every record is there, unchanged and in order
          1  a fault; or there is no record
          2  wrong usage, or the configuration cannot be used
          4  not permitted
        """
    )
)
@click.option(
    "--anchors", type=click.File("rb"), help="Text with anchor lines, such as the helper's journal; -: stdin."
)
@click.option("--first", type=click.IntRange(1), help="The record that the log should begin with.")
@_JSON
@_LOG
@click.pass_obj
def verify(
    config_dir: Path,
    anchors: Iterable[bytes] | None,
    first: int | None,
    as_json: bool,  # noqa: FBT001
    log: Path | None,
) -> Outcome:
    """Verify the log."""
    path = _path(config_dir, log)
    given = anchors_in(anchors) if anchors is not None else []
    if anchors is not None and not given:
        raise Stopped(Outcome.USAGE, "no line of the anchors' text holds one: audit-anchor SEQ HASH is expected")
    with files.opened(path) as there:
        begins = first or there[0].first or 1
        chain = verified(there, begins, given)
        if first is None and log is None:
            _judge_beginning(chain, there[0], configuration.load_helper(config_dir).audit.keep_days)
        names = [str(file.path) for file in there]
    if as_json:
        print_json(_report(chain, names, given))
    else:
        _print_report(chain, path, given)
    return Outcome.DONE if chain.records and not chain.faults else Outcome.FINDING


def _path(config_dir: Path, log: Path | None) -> Path:
    return log or Path(configuration.load_helper(config_dir).audit.path)


def _time(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_time(text, now=time.time(), end=option == "until")
    except (ValueError, OverflowError):
        message = f"{shown_key(text)} is no time: 2026-03-03, 2026-03-03T14:00 and 2h are some"
        raise click.BadParameter(message, param_hint=f"--{option}") from None


def _json_lines(records: Iterable[Record], *, headed: bool = True) -> Iterator[str]:
    del headed
    for record in records:
        yield as_json(record, indent=None)


def _judge_beginning(chain: Chain, oldest: files.LogFile, keep_days: int) -> None:
    """Say that older files are missing which the helper would still keep."""
    if chain.first == 1:
        return
    begin = next(Reader(Query()).matching(files.lines(oldest)), {}).get("time")
    if isinstance(begin, int | float) and begin > time.time() - keep_days * 86400:
        seen = f"older files are not there, though record {chain.first} is no {keep_days} days old (audit.keep_days)"
        chain.faults.insert(0, Fault(1, chain.first - 1, Kind.MISSING, seen))


def _print_report(chain: Chain, path: Path, anchors: list[Anchor]) -> None:
    for fault in chain.faults:
        which = f"record {fault.record}" if fault.record == fault.last else f"records {fault.record} to {fault.last}"
        print_line(f"{which}: {fault.kind.replace('_', ' ')}: {fault.seen}")
    if chain.faults_not_kept:
        print_line(f"and {chain.faults_not_kept} faults more")
    if not chain.records:
        print_line(f"{path}: no record")
        return
    verdict = "each is unchanged and in its place" if not chain.faults else "NOT in order, see above"
    print_line(f"{path}: {chain.records} records, {chain.first} to {chain.next - 1}: {verdict}")
    print_line(f"the last one's hash is {chain.digest}")
    if chain.first > 1:
        print_line(f"records 1 to {chain.first - 1} are not there: files are kept for audit.keep_days")
    print_line(_said_of_anchors(chain, anchors))


def _said_of_anchors(chain: Chain, anchors: list[Anchor]) -> str:
    if not anchors:
        return "no anchors were given: without them neither a cut end nor a log that root wrote anew shows"
    checked = [seq for seq, _ in anchors if seq in chain.found]
    newest = f", the newest at record {max(checked)}" if checked else ""
    return f"{len(checked)} of {len(anchors)} anchors are of records that are there{newest}"


def _report(chain: Chain, names: list[str], anchors: list[Anchor]) -> dict[str, object]:
    return {
        "files": names,
        "records": chain.records,
        "first": chain.first,
        "last": chain.next - 1,
        "last_hash": chain.digest or None,
        "faults": [fault._asdict() for fault in chain.faults],
        "faults_not_listed": chain.faults_not_kept,
        "anchors": {"given": len(anchors), "checked": sum(seq in chain.found for seq, _ in anchors)},
    }
