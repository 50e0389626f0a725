"""Questions about the broker that the accounts' own connections answer. Asked as the listener's account, not as root.

Rights are asked for without taking or publishing anything (operator/broker.py says how); each refusal is a line in
the broker's log. What only the management interface knows is asked in managed.py.
"""

import re
import socket
import ssl
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote, urlsplit

from broker_listener.config import BrokerConfig, BrokerUrl, parse_url, tls_context
from broker_listener.operator.broker import CannotConnect, Refused, Session, connect
from broker_listener.operator.checks.finding import Finding, fault, not_asked, ok, warning
from broker_listener.strict_x509 import be_strict, cure, is_strict

REACH_TIMEOUT: Final = 3.0
EXPIRES_SOON: Final = 30
"""Days."""
PARKED_ARGUMENTS: Final[dict[str, object]] = {"x-max-length-bytes": 2**30, "x-overflow": "reject-publish"}


@dataclass(frozen=True, slots=True)
class Secrets:
    """What was read while the command was root; ``executors`` is the executors' broker URL, None where it is not."""

    listener: str | None = field(repr=False)
    executors: str | None = field(repr=False)


def findings(broker: BrokerConfig, secrets: Secrets) -> Iterator[Finding]:
    """Ask everything, as far as the answers before allow."""
    sessions: list[Session] = []
    for url in map(parse_url, broker.urls):
        sessions += yield from _server(broker, url, secrets)
    if sessions:
        for question in QUESTIONS:
            yield from question(broker, sessions[0])
    yield from _executors(broker, secrets)
    for session in sessions:
        session.close()


def _server(broker: BrokerConfig, url: BrokerUrl, secrets: Secrets) -> Generator[Finding, None, list[Session]]:
    """Ask whether a broker is there, is who it should be, and takes the listener's account; return the session."""
    subject, where = "broker.server", f"{url.host}:{url.port}"
    try:
        with socket.create_connection((url.host, url.port), REACH_TIMEOUT) as plain:
            if url.tls:
                yield from _certificate(broker, url, plain)
    except OSError as error:
        yield fault(
            subject, f"{where}: {error.strerror or error}", "is the broker up, a firewall open, the host right?"
        )
        return []
    if secrets.listener is None:
        yield not_asked(subject, f"{where} is there; the password of {url.user} could not be read", "run this as root")
        return []
    try:
        session = connect(broker, url, url.user, secrets.listener)
    except CannotConnect as error:
        yield fault(
            subject, f"{where}: {error}", f"account {url.user}, its password, its rights in vhost {url.vhost!r}"
        )
        return []
    yield ok(subject, f"{where}: {session.product} takes {url.user}")
    return [session]


def _certificate(broker: BrokerConfig, url: BrokerUrl, plain: socket.socket) -> Iterator[Finding]:
    subject = "broker.tls"
    try:
        context = tls_context(broker)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError, a key with a passphrase a ValueError
        files = ", ".join(filter(None, (broker.ca_file, broker.client_cert_file, broker.client_key_file)))
        advice = "they must be PEM, and readable by the account of the listener"
        yield fault(subject, f"{files}: cannot be used: {getattr(error, 'strerror', None) or error}", advice)
        return
    try:
        with context.wrap_socket(plain, server_hostname=url.host) as encrypted:
            ends = str((encrypted.getpeercert() or {}).get("notAfter", ""))
    except ssl.SSLCertVerificationError as error:
        advice = "broker.ca_file must hold the authority; broker.urls must name the host as the certificate does"
        yield fault(subject, f"{url.host}: {error.verify_message}", cure(error) or advice)
        return
    except (ssl.SSLError, OSError) as error:
        yield fault(
            subject, f"{url.host}:{url.port}: {error}", "does this port speak TLS? does it want client_cert_file?"
        )
        return
    days = int((ssl.cert_time_to_seconds(ends) - datetime.now(UTC).timestamp()) // 86400) if ends else EXPIRES_SOON
    if days < EXPIRES_SOON:
        yield warning(subject, f"{url.host}: its certificate ends in {days} days", "renew it")
    else:
        yield ok(subject, f"{url.host}: chain and name are right, {days} days left")
    if not is_strict(context):
        yield from _by_newer_pythons(url, be_strict(context))


def _by_newer_pythons(url: BrokerUrl, strict: ssl.SSLContext) -> Iterator[Finding]:
    """Ask whether an upgrade of this host, to Debian 13 for one, would be the end of the connection."""
    try:
        with (
            socket.create_connection((url.host, url.port), REACH_TIMEOUT) as plain,
            strict.wrap_socket(plain, server_hostname=url.host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        if (advice := cure(error)) is not None:
            yield warning(
                "broker.tls_strict", f"{url.host}: {error.verify_message}: this host's Python accepts it", advice
            )
    except OSError:  # it was there a moment ago; the next run says more
        return


def queue(broker: BrokerConfig, session: Session) -> Iterator[Finding]:
    """Ask whether the jobs queue is there, may be read, and is read by anybody."""
    subject, name = "broker.queue", broker.queue
    state = session.queue(name)
    if state is None:
        yield fault(subject, f"there is no queue {name}", "KNIME Server makes it; is it up? is broker.queue its name?")
    elif not session.may_consume(name):
        yield fault(
            subject, f"{session.account} may not read {name}", "rabbitmqctl set_permissions, README: Installing"
        )
    elif not state.consumers:
        yield fault(subject, f"nobody consumes {name}, {state.messages} messages wait", "is knime-broker-listener up?")
    else:
        yield ok(subject, f"{name}: {state.consumers} consumers, {state.messages} messages wait")


def exchange(broker: BrokerConfig, session: Session) -> Iterator[Finding]:
    """Ask whether jobs can be published where the listener publishes them."""
    subject, name = "broker.exchange", broker.exchange
    if name and not session.has_exchange(name):
        yield fault(subject, f"there is no exchange {name}", "KNIME Server makes it; is broker.exchange its name?")
    elif not session.may_publish(name):
        what = f"exchange {name}" if name else "the default exchange"
        yield fault(subject, f"{session.account} may not write to {what}", "rabbitmqctl set_permissions")
    else:
        yield ok(subject, f"{session.account} may publish to {name or 'the default exchange'}")


def parked(broker: BrokerConfig, session: Session) -> Iterator[Finding]:
    """Ask whether what is no job has a place to go."""
    subject, name = "broker.parked", broker.parked_queue
    if not session.may_publish(""):
        seen = f"{session.account} may not write to amq.default: nothing can be parked, it is held instead"
        yield fault(subject, seen, "rabbitmqctl set_permissions, README: Installing")
        return
    state = session.queue(name)
    if state is None:
        yield fault(
            subject, f"there is no queue {name}", "the listener makes it when it connects: journalctl -u its unit"
        )
        return
    session.declare_queue_as(name, PARKED_ARGUMENTS)
    if state.messages:
        advice = "knime-peruser parked list says why; README: Parked messages"
        yield warning(subject, f"{state.messages} messages are parked in {name}", advice)
    else:
        yield ok(subject, f"{name} is there as the listener makes it, and empty")


def _guarded(question: "BrokerQuestion") -> "BrokerQuestion":
    """Give the question with what the broker refuses as a fault of its own."""

    def guarded(broker: BrokerConfig, session: Session) -> Iterator[Finding]:
        try:
            yield from question(broker, session)
        except Refused as error:
            advice = "404: it is gone; 403: rabbitmqctl set_permissions; 406: it exists with other arguments"
            yield fault(f"broker.{question.__name__}", f"the broker refused: {error}", advice)

    return guarded


def _executors(broker: BrokerConfig, secrets: Secrets) -> Iterator[Finding]:
    """Ask whether the executors' account works, is another one, and what it may do."""
    subject = "broker.executors"
    if secrets.executors is None:
        yield not_asked(subject, "the executors' broker URL could not be read", "run this as root; it is one line")
        return
    try:
        url, password = _first_of(secrets.executors)
    except ValueError:
        yield fault(
            subject, "executor-msgq holds no URL of a broker", "amqp://ACCOUNT:PASSWORD@HOST:5672/%2F, one line"
        )
        return
    listeners = {parse_url(one).user for one in broker.urls}
    if url.user in listeners:
        seen = f"executors have the listener's own account {url.user}, and every workflow can read its password"
        yield fault(subject, seen, "give executors an account of their own, README: Installing it, 3")
    try:
        session = connect(broker, url, url.user, password)
    except CannotConnect as error:
        yield fault(subject, f"{url.host}:{url.port} as {url.user}: {error}", "executors cannot connect: executor-msgq")
        return
    try:
        yield from _rights_of_executors(broker, session)
    except Refused as error:
        yield fault(subject, f"{url.user} may not see what it needs: {error}", "rabbitmqctl set_permissions")
    finally:
        session.close()


def _rights_of_executors(broker: BrokerConfig, session: Session) -> Iterator[Finding]:
    subject, account = "broker.executors", session.account
    if session.queue(broker.queue) and not session.may_consume(broker.queue):
        yield fault(subject, f"{account} may not read {broker.queue}: executors get no jobs", "set_permissions: read")
    else:
        yield ok(subject, f"{account} can connect and consume {broker.queue}")
    if session.may_publish(""):
        seen = f"{account} may write to amq.default: every user with an executor can publish to any queue"
        yield warning(
            "broker.executors_default_exchange", seen, "rabbitmqctl set_permissions: write, without amq.default"
        )
    if broker.exchange and session.has_exchange(broker.exchange) and session.may_publish(broker.exchange):
        subject = "broker.executors_publish"
        seen = f"{account} may publish jobs: a user with an executor can forge another's job, which then runs as them"
        advice = f"if your executors give jobs back without it, take the right away; else it stays: --accept {subject}"
        yield warning(subject, seen, advice)
    else:
        yield ok("broker.executors_publish", f"{account} cannot publish jobs")


def _first_of(msgq: str) -> tuple[BrokerUrl, str]:
    """Take the first of the executors' URLs apart, as the Java client does."""
    first = msgq.strip().partition(",")[0]
    parts = urlsplit(first)
    without_password = re.sub(r"^(amqps?://[^:@/]*):[^@/]*@", r"\1@", first)
    return parse_url(without_password), unquote(parts.password or "")


BrokerQuestion = Callable[[BrokerConfig, Session], Iterator[Finding]]
QUESTIONS: Final[tuple[BrokerQuestion, ...]] = tuple(_guarded(question) for question in (queue, exchange, parked))
