"""``knime-peruser status``: who has an executor, how the daemons are, and one user's history.

Root is told by both daemons; a member of ``knime-operators`` by the listener. Nothing is changed.
"""

import sys
import time
from pathlib import Path
from typing import Final

import click
from rich.live import Live

from broker_listener.operator import configuration
from broker_listener.operator.audit_log import files, table
from broker_listener.operator.audit_log.records import Query, Reader, Record, last_of
from broker_listener.operator.listener_socket import PATH
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.output import console, escaped, manual, print_json, print_line, say, width
from broker_listener.operator.overview import Entry, Look, Overview
from broker_listener.operator.overview_page import page

HISTORY: Final = 20
"""Records of a user that are shown."""


@click.command(
    "status",
    help=manual(
        """\
        Show who has an executor on this host, and how listener, helper and broker are. With USER, a name as KNIME has
        it, only that user, and what the audit log last recorded of them: requests, refusals, starts and ends.

        memory and cpu are those of the user's whole scope, cpu in percent of one core since the look before; they are
        "-" where the host has no such figures. jobs and parked are the listener's counts since its start, held is what
        waits now; a job that was handed over counts once in jobs, however often it comes back.
        Without an executor: who waits for one, or was refused, and why; behind a failure whose fault it is, the
        user's or the host's. The line "host" says whether executors start here at all.

        Root is told everything. A member of group knime-operators is told what the listener knows.

        examples:
          knime-peruser status
          knime-peruser status --watch
          knime-peruser status alice

        exit status:
          0  all is well; with USER: the user is known
          1  the broker is away, no jobs are taken, or nobody's executor starts; with USER: nothing is known of them
          2  wrong usage, or the configuration cannot be used
          3  a daemon cannot be reached; what is known is shown
          4  not permitted
        """
    ),
)
@click.argument("user", required=False)
@click.option("--watch", "-w", is_flag=True, help="Show it anew all the time, until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(0.5, 3600), default=2.0, show_default=True, help="Seconds, of --watch."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--status-socket",
    type=click.Path(readable=False, path_type=Path),  # who may not ask is told so below, not that it is no path
    default=PATH,
    show_default=True,
    help="Where the listener tells its status.",
)
@click.pass_obj
def command(  # noqa: PLR0913, PLR0917 - one argument an option
    config_dir: Path,
    user: str | None,
    watch: bool,  # noqa: FBT001 - click's flags
    interval: float,
    as_json: bool,  # noqa: FBT001
    status_socket: Path,
) -> Outcome:
    """Show what is there."""
    helper = configuration.load_helper(config_dir)
    look = Look(helper.socket.operator_path, status_socket)
    if watch:
        if user is not None or as_json:
            raise click.UsageError("--watch shows everybody, and on a terminal")
        return _watch(look, interval)
    if user is not None:
        return _of_one(look, user, Path(helper.audit.path), as_json=as_json)
    overview = look.with_shares()
    if as_json:
        print_json(overview.as_json())
    else:
        console().print(page(overview, width()))
    return overview.outcome


def _watch(look: Look, interval: float) -> Outcome:
    screen = console()
    if not screen.is_terminal or not sys.stdout.isatty():
        raise Stopped(Outcome.USAGE, "--watch needs a terminal; knime-peruser status --json is for programs")
    overview = look.once()
    if screen.is_dumb_terminal:  # it moves no cursor: pages follow one another
        return _pages(look, interval)
    with Live(page(overview, screen.width, screen.height), console=screen, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(page(overview, screen.width, screen.height), refresh=True)
                time.sleep(interval)
                overview = look.once()
        except KeyboardInterrupt:  # that is how one ends it
            return overview.outcome


def _pages(look: Look, interval: float) -> Outcome:
    overview = look.with_shares()
    try:
        while True:
            console().print(page(overview, width()))
            print_line()
            time.sleep(interval)
            overview = look.once()
    except KeyboardInterrupt:
        return overview.outcome


def _of_one(look: Look, user: str, log: Path, *, as_json: bool) -> Outcome:
    overview = look.with_shares()
    entry = next((entry for entry in overview.entries if entry.user == user), None)
    records, why = _history(log, user)
    if as_json:
        state = None if entry is None else next(e for e in overview.as_json()["users"] if e["user"] == user)  # type: ignore[attr-defined]
        print_json({"user": user, "now": state, "elsewhere": dict(_elsewhere(overview, user)), "history": records})
    else:
        _print_entry(user, entry)
        if there := _elsewhere(overview, user):
            print_line(f"on other hosts: {', '.join(f'{escaped(host)} {escaped(state)}' for host, state in there)}")
        for missing in overview.why.values():
            say(str(missing))
        for text in table.lines(records, width=width()) if records else ():
            print_line(text)
        if why is not None or not records:
            say(str(why or f"no record of {user} in {log}"))
    known = entry is not None or records or _elsewhere(overview, user)
    return Outcome.DONE if known else Outcome.FINDING


def _elsewhere(overview: Overview, user: str) -> list[tuple[str, str]]:
    """Give the other hosts on which the user has an executor, and its state there."""
    cluster = overview.listener.cluster if overview.listener is not None else None
    executors = cluster.executors if cluster is not None else ()
    return [(one.host, one.state) for one in executors if one.user == user and cluster and one.host != cluster.host]


def _history(log: Path, user: str) -> tuple[list[Record], Stopped | None]:
    """Give the last records of a user, or why there are none."""
    try:
        with files.opened(log) as there:
            matching = Reader(Query(user=user)).matching(line for file in there for line in files.lines(file))
            return list(last_of(matching, HISTORY)), None
    except Stopped as stopped:
        return [], stopped


def _print_entry(user: str, entry: Entry | None) -> None:
    if entry is None:
        print_line(f"{escaped(user)}: no executor on this host, and nothing waits for one")
        return
    facts = {
        "state": entry.state,
        "reason": entry.reason,
        "whose fault": entry.blame,
        "account": entry.os_user,
        "uid": entry.uid,
        "pid": entry.pid,
        "jobs": entry.jobs,
        "handed over": entry.handed_over,
        "held": entry.held,
        "parked": entry.parked,
    }
    known = "  ".join(f"{name} {escaped(value)}" for name, value in facts.items() if value is not None)
    print_line(f"{escaped(user)}: {known}")
