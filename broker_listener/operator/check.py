"""``knime-peruser check``: asks every question of ``checks/``, as root what root alone can see, then the broker.

It reads and changes nothing. The broker is asked as the listener's account, after root was given up for good.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import click

from broker_listener.config import parse_url, read_secret
from broker_listener.operator.check_page import UNKNOWN, counts, print_findings, print_for_nagios, worst
from broker_listener.operator.checks import (
    account,
    daemons,
    host,
    hosts,
    installation,
    knime,
    message_size,
    processes,
    starts,
    workspaces,
)
from broker_listener.operator.checks.finding import (
    Finding,
    Inputs,
    Level,
    Question,
    not_asked,
    patient_once,
    run_program,
    warning,
)
from broker_listener.operator.checks.running import Running, ask
from broker_listener.operator.configuration import Configuration, broker_password, load
from broker_listener.operator.listener_socket import PATH, Snapshot, snapshot
from broker_listener.operator.management import Management, named
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.output import escaped, manual, print_json, print_line
from broker_listener.operator.unprivileged import become
from broker_listener.secret_text import NotOneLineError, one_line

LOCAL: Final[tuple[Question, ...]] = (
    *account.QUESTIONS,
    *daemons.QUESTIONS,
    *processes.QUESTIONS,
    *installation.QUESTIONS,
    *knime.QUESTIONS,
    *workspaces.QUESTIONS,
    *host.QUESTIONS,
    *hosts.QUESTIONS,
    *message_size.QUESTIONS,
    *starts.QUESTIONS,
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    user: str | None
    server_config: Path | None
    management: str | None
    management_password_file: Path | None
    accept: tuple[str, ...]
    status_socket: Path = PATH


class _Check(click.Command):
    """The command, where wrong usage is what Nagios calls unknown: its 2 would be critical."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """Parse the command line."""
        for_nagios = "--nagios" in args  # parsing takes them out
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if not for_nagios:
                raise
            print_line(f"KNIME-PERUSER UNKNOWN - {escaped(error.format_message())}")
            raise click.exceptions.Exit(UNKNOWN) from None


@click.command(
    "check",
    cls=_Check,
    help=manual(
        """\
        Ask whether this installation is sound, and what to do where it is not.

        Each line is an answer: ok, warning, fault, or not asked, with what was seen; below it what to do. Nothing is
        changed. Run it as root: what root alone can see is not asked otherwise. The broker is asked as the listener's
        account; a right that is missing leaves a line in the broker's log.

        A warning that you have looked at and live with is named with --accept and counts as ok from then on.

        examples:
          knime-peruser check
          knime-peruser check --user alice          why does she get no executor?
          knime-peruser check --server-config /srv/knime_repository/config/knime-server.config
          knime-peruser check --management http://monitor@127.0.0.1:15672 --management-password-file /root/monitor
          knime-peruser check --nagios --accept broker.executors_publish

        exit status:
          0  all is well
          1  a warning or a fault
          2  wrong usage, or the configuration cannot be used
          with --nagios: 0 well, 1 a warning, 2 a fault, 3 it could not be asked
        """
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--nagios", is_flag=True, help="Print one line with performance data, exit as Nagios plug-ins do.")
@click.option("--user", metavar="NAME", help="Also: would this KNIME user get an executor?")
@click.option(
    "--server-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="KNIME Server's knime-server.config: is its load time-out long enough?",
)
@click.option("--management", metavar="URL", help="RabbitMQ's management interface: http[s]://ACCOUNT@HOST:15672.")
@click.option(
    "--management-password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The password of that account.",
)
@click.option(
    "--status-socket",
    type=click.Path(readable=False, path_type=Path),
    default=PATH,
    show_default=True,
    help="Where the listener tells its status.",
)
@click.option("--accept", metavar="SUBJECT", multiple=True, help="Count this warning as ok; may be repeated.")
@click.pass_obj
def command(  # noqa: PLR0913 - click gives each option as an argument
    directory: Path,
    *,
    as_json: bool,
    nagios: bool,
    user: str | None,
    server_config: Path | None,
    management: str | None,
    management_password_file: Path | None,
    status_socket: Path,
    accept: tuple[str, ...],
) -> int:
    """Ask, print, and give the exit status."""
    wanted = Wanted(user, server_config, management, management_password_file, accept, status_socket)
    begun = time.monotonic()
    try:
        found = [_accepted(finding, accept) for finding in findings(load(directory), wanted)]
    except Stopped as stopped:
        if not nagios:
            raise
        print_line(f"KNIME-PERUSER UNKNOWN - {escaped(stopped)}")
        return UNKNOWN
    if nagios:
        return print_for_nagios(found, time.monotonic() - begun)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in found], "counts": counts(found)})
    else:
        print_findings(found)
    return Outcome.FINDING if worst(found) is not Level.OK else Outcome.DONE


def findings(configuration: Configuration, wanted: Wanted) -> Iterator[Finding]:
    """Ask everything; root is given up on the way."""
    management = _management(configuration, wanted)
    running = ask(configuration.helper.socket.operator_path)
    run = patient_once(run_program)
    listening = _listener(wanted.status_socket)
    inputs = Inputs(configuration, Path("/"), run, running, listening, wanted.user, wanted.server_config)
    yield from asked(LOCAL, inputs)
    listener, executors = _passwords(configuration)
    try:
        become(configuration.helper.socket.listener_user)
    except Stopped as stopped:
        yield not_asked("broker", str(stopped))
        return
    from broker_listener.operator.checks import broker, managed  # noqa: PLC0415 - pika is not loaded while this is root

    yield from broker.findings(configuration.listener.broker, broker.Secrets(listener, executors))
    owners = running.uids | {os.geteuid()} if isinstance(running, Running) else None
    yield from managed.findings(configuration.listener.broker, management, owners)


def asked(questions: Iterable[Question], inputs: Inputs) -> Iterator[Finding]:
    """Ask questions one by one; what cannot be read is not asked, and says so."""
    for question in questions:
        subject = f"{question.__module__.rpartition('.')[2]}.{question.__name__}"
        try:
            yield from question(inputs)
        except PermissionError as error:
            yield not_asked(subject, f"{error.filename}: {error.strerror}", "run this as root")
        except OSError as error:
            yield warning(subject, f"{error.filename}: {error.strerror}", "look at that path, and ask again")


def _listener(status_socket: Path) -> Snapshot | str:
    try:
        return snapshot(status_socket)
    except Stopped as stopped:
        return str(stopped)


def _passwords(configuration: Configuration) -> tuple[str | None, str | None]:
    """Give the listener's password and the executors' broker URL; None for what cannot be read."""
    try:
        listener = broker_password(configuration)
    except Stopped:
        listener = None
    executors = Path(configuration.helper.executor.msgq_file or configuration.directory / "executor-msgq")
    try:
        return listener, one_line(read_secret(executors))
    except (OSError, NotOneLineError):  # daemons.executor-msgq says so
        return listener, None


def _management(configuration: Configuration, wanted: Wanted) -> Management | None:
    if wanted.management is None and wanted.management_password_file is None:
        return None
    if wanted.management is None or wanted.management_password_file is None:
        raise Stopped(Outcome.USAGE, "--management and --management-password-file: both or neither are expected")
    broker = configuration.listener.broker
    return named(wanted.management, wanted.management_password_file, parse_url(broker.urls[0]).vhost, broker.ca_file)


def _accepted(finding: Finding, accept: tuple[str, ...]) -> Finding:
    if finding.level is Level.WARNING and finding.subject in accept:
        return replace(finding, level=Level.OK, seen=f"{finding.seen} (accepted)")
    return finding
