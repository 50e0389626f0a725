"""``knime-peruser observe``: an hour beside a KNIME test installation, and what nobody outside knows becomes facts.

It consumes nothing of KNIME's: a private queue gets copies of what is published, and goes with the connection. What
is printed are names, types and counts; no value of a body is kept, and of properties only three marks are.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from broker_listener.config import BrokerConfig, parse_url, read_secret
from broker_listener.operator.configuration import Configuration, broker_password, load
from broker_listener.operator.management import Management, Unavailable, named
from broker_listener.operator.observing import broker as managed
from broker_listener.operator.observing.traffic import Traffic
from broker_listener.operator.observing.verdict import Seen, mode, remarks
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.output import escaped, manual, print_json, print_line, say
from broker_listener.operator.unprivileged import become
from broker_listener.secret_text import NotOneLineError, one_line

MANAGEMENT_SETTLES: Final = 6.0
"""Seconds until the management interface shows what has just happened; it collects every five."""
PROGRESS: Final = 60.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Access:
    """As whom the broker is watched."""

    account: str
    password: str
    management: Management | None


@click.command(
    "observe",
    help=manual(
        """\
        Watch a KNIME installation's messages, and say which hand-over mode and settings fit it.

        A private queue is bound to the jobs exchange and gets a copy of each job that is published; KNIME's own queue
        is not touched. Names of properties, headers and top-level keys of bodies are printed, with types and counts,
        never a value of a body: the report can be sent on. Meanwhile run jobs as several users; the verdict needs jobs
        that reach an executor of somebody else and come back. Stop knime-broker-listener for that time, or its own
        hand-overs are taken for KNIME's.

        The listener's account may not bind a queue to the jobs exchange. Give an account that may, with --account, or
        widen the listener's for the time:

          rabbitmqctl set_permissions -p / knime-listener '^knime-jobs\\.parked$|^knime-peruser\\..*' '.*' '.*'

        --management tells what AMQP does not: exchanges, queues, their flags, limits and bindings, consumers and their
        prefetch, and how many jobs were given back without being published. Look at the queues' names before you send
        the report on: KNIME chose them.

        examples:
          knime-peruser observe --for 3600 --account knime-server --password-file /root/server \\
            --management http://monitor@127.0.0.1:15672 --management-password-file /root/monitor --json > report

        exit status:
          0  done, with a verdict
          1  done, but nothing was seen that tells
          2  wrong usage, or the configuration cannot be used
          3  the broker cannot be reached
          4  not permitted: the account may not bind a queue, or a password cannot be read
        """
    ),
)
@click.option(
    "--for", "seconds", type=click.FloatRange(0.1, 7 * 86400), default=3600.0, show_default=True, help="Seconds."
)
@click.option("--account", metavar="NAME", help="The broker account to watch with; default: the listener's.")
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Its password.",
)
@click.option("--management", metavar="URL", help="RabbitMQ's management interface: http[s]://ACCOUNT@HOST:15672.")
@click.option(
    "--management-password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The password of that account.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(  # noqa: PLR0913 - click gives each option as an argument
    directory: Path,
    *,
    seconds: float,
    account: str | None,
    password_file: Path | None,
    management: str | None,
    management_password_file: Path | None,
    as_json: bool,
) -> Outcome:
    """Watch, then print."""
    configuration = load(directory)
    access = _access(configuration, (account, password_file), (management, management_password_file))
    become(configuration.helper.socket.listener_user)
    report = watch(configuration, access, seconds)
    if as_json:
        print_json(report)
    else:
        _print(report)
    return Outcome.DONE if report["verdict"]["mode"] else Outcome.FINDING


def watch(configuration: Configuration, access: Access, seconds: float) -> dict[str, Any]:
    """Watch for that long and give the report.

    Raises:
        Stopped: the broker cannot be reached, or the account may not watch.
    """
    broker = configuration.listener.broker
    traffic = Traffic()
    with _tapped(broker, access) as copies:
        before = _asked(access.management, lambda asked: managed.redeliveries(broker, asked))
        begun = time.time()
        _collect(copies(seconds), traffic)
    if before is not None:
        time.sleep(min(MANAGEMENT_SETTLES, seconds))
    after = _asked(access.management, lambda asked: managed.redeliveries(broker, asked))
    facts = _asked(access.management, lambda asked: managed.facts(broker, asked))
    redelivered = None if before is None or after is None else max(after - before, 0)
    seen = Seen(traffic.facts(), (facts or {}).get("queue"), redelivered)
    fitting, why = mode(seen)
    return {
        "begun": begun,
        "seconds": seconds,
        "broker": facts,
        "redelivered": redelivered,
        "traffic": seen.traffic,
        "verdict": {"mode": fitting, "why": why, "remarks": list(remarks(seen, configuration.listener))},
    }


@contextmanager
def _tapped(broker: BrokerConfig, access: Access) -> Iterator[Any]:
    """Give what gives the copies of what is published within a time."""
    from broker_listener.operator.broker import Refused, session  # noqa: PLC0415 - pika is not loaded while this is root

    if not broker.exchange:
        raise Stopped(Outcome.USAGE, 'broker.exchange is "": copies can be had of an exchange alone')
    with session(broker, access.password, access.account) as connected:
        try:
            queue = connected.tap(broker.exchange, broker.routing_key)
        except Refused as error:
            hint = "see --help for the rights that watching needs" if error.code == 403 else "KNIME Server makes it"
            raise Stopped(Outcome.NOT_PERMITTED, f"{broker.exchange}: {error}; {hint}") from None
        yield lambda seconds: connected.deliveries(queue, seconds)


def _collect(copies: Iterator[Any], traffic: Traffic) -> None:
    told = time.monotonic()
    for message in copies:
        now = time.monotonic()
        if message is not None:
            traffic.take(message.body, message.properties, now)
        if now - told >= PROGRESS:
            say(f"{traffic.messages} messages so far")
            told = now


def _asked(management: Management | None, question: Callable[[Management], T]) -> T | None:
    if management is None:
        return None
    try:
        return question(management)
    except Unavailable as error:
        raise Stopped(Outcome.UNREACHABLE, f"--management: {error}") from None


def _access(
    configuration: Configuration, watcher: tuple[str | None, Path | None], manager: tuple[str | None, Path | None]
) -> Access:
    if (watcher[0] is None) != (watcher[1] is None):
        raise Stopped(Outcome.USAGE, "--account and --password-file: both or neither are expected")
    if (manager[0] is None) != (manager[1] is None):
        raise Stopped(Outcome.USAGE, "--management and --management-password-file: both or neither are expected")
    broker = configuration.listener.broker
    url = parse_url(broker.urls[0])
    management = named(manager[0], manager[1], url.vhost, broker.ca_file) if manager[0] and manager[1] else None
    if watcher[0] and watcher[1]:
        try:
            return Access(watcher[0], one_line(read_secret(watcher[1])), management)
        except OSError as error:
            raise Stopped(Outcome.NOT_PERMITTED, f"--password-file: {error}") from None
        except NotOneLineError as error:
            raise Stopped(Outcome.USAGE, f"--password-file: {watcher[1]} {error}") from None
    return Access(url.user, broker_password(configuration), management)


def _print(report: Mapping[str, Any]) -> None:
    traffic, verdict = report["traffic"], report["verdict"]
    print_line(f"{traffic['messages']} messages in {report['seconds']:g} s", "bold")
    for title in ("properties", "headers", "body_keys", "bodies", "can_handle", "delivery_modes", "put_back"):
        _print_counts(title, traffic[title])
    print_line(f"largest body {traffic['largest_body']} bytes, properties {traffic['largest_properties']} bytes")
    if hops := traffic["hop_seconds"]:
        print_line(f"a message came back after {hops['median']:.3f} s (median), {hops['p95']:.3f} s (p95)")
    if report["broker"]:
        _print_broker(report["broker"])
        print_line(f"{report['redelivered']} redeliveries of the jobs queue meanwhile")
    print_line(f"Verdict: hand_over.mode = {verdict['mode'] or 'not known'}: {escaped(verdict['why'], 500)}", "bold")
    for remark in verdict["remarks"]:
        print_line(f"  - {escaped(remark, 500)}")


def _print_broker(facts: Mapping[str, Any]) -> None:
    print_line(f"RabbitMQ {escaped(facts['broker_version'])}", "bold")
    for what in ("exchange", "queue"):
        known = facts[what] or {"": "not there"}
        print_line(f"jobs {what}: {', '.join(f'{name} {escaped(value)}' for name, value in known.items())}")
    for one in facts["bindings"]:
        to = f"{escaped(one['destination_type'])} {escaped(one['destination'])}"
        print_line(f"jobs exchange -- {escaped(one['routing_key'])} -> {to}")
    for title in ("all_exchanges", "all_queues", "all_bindings", "all_consumers"):
        _print_counts(title, facts[title])


def _print_counts(title: str, counts: Mapping[str, int]) -> None:
    """Print names below each other, each whole on whatever terminal: the report is sent on."""
    if counts:
        print_line(title.replace("_", " "), "bold")
    for name, count in counts.items():
        print_line(f"{count:>9}  {escaped(name, 500)}")
