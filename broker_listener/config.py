"""listener.toml as frozen dataclasses, and the broker's password, which is never in it.

The file is the administrator's and is trusted; what it leaves out has a default that works for the documented set-up
of KNIME. Everything wrong is found in one go and named by file and key. What is not built yet is refused, not ignored.
"""

import ipaddress
import os
import socket
import ssl
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from broker_listener.host_messages import is_host_name
from broker_listener.secret_text import MAX_BYTES, NotOneLineError, one_line
from protocol.settings import SettingsError, one_of, settings, within

ROOT_PASSWORD: Final = Path("/etc/knime-peruser/broker-password")
"""Read where the process is root: the daemon's ``--check`` and the operator's commands."""


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """``[broker]``: sizes in bytes, times in seconds."""

    urls: tuple[str, ...] = ("amqp://knime@127.0.0.1:5672/%2F",)
    password_file: str = ""
    ca_file: str = ""
    client_cert_file: str = ""
    client_key_file: str = ""
    queue: str = "knime-jobs"
    exchange: str = "knime-server2executorknime-jobs"
    routing_key: str = "new-work"
    parked_queue: str = "knime-jobs.parked"
    prefetch: int = within(20000, 1, 65535)
    max_unconfirmed: int = within(1000, 1, 100000)
    max_body: int = within(262144, 1024, 2**27)
    max_held_bytes: int = within(67108864, 2**20, 2**40)
    max_parkable: int = within(2**27, 1024, 2**29)
    max_hold: float = within(600.0, 1.0, 1700.0)  # RabbitMQ closes a channel that holds a delivery for 1800 s


@dataclass(frozen=True, slots=True)
class HandOverConfig:
    """``[hand_over]``: times in seconds."""

    mode: str = one_of("republish", "requeue")
    ready: str = one_of("broker-connection", "delay")
    ready_addresses: tuple[str, ...] = ()
    ready_delay: float = within(3.0, 0.0, 600.0)
    start_timeout: float = within(45.0, 1.0, 1700.0)
    retry_initial: float = within(0.01, 0.001, 60.0)
    retry_max: float = within(0.25, 0.001, 60.0)
    returns_per_second: int = within(500, 1, 100000)
    max_start_attempts: int = within(10, 1, 1000)
    unknown_grace: float = within(60.0, 0.0, 1700.0)


@dataclass(frozen=True, slots=True)
class HelperConfig:
    """``[helper]``: the time-out of a request in seconds."""

    socket: str = "/run/knime-peruser/helper.sock"
    timeout: float = within(60.0, 1.0, 600.0)


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """``[cluster]``: times in seconds."""

    enabled: bool = False
    executors_per_user: int | str = "all"
    host: str = ""
    exchange: str = "knime-peruser.hosts"
    heartbeat: float = within(5.0, 0.1, 60.0)
    dead_after: float = within(15.0, 0.5, 600.0)


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """``[metrics]``: where Prometheus reads, "" for nowhere."""

    listen: str = "127.0.0.1:9469"


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """The whole of listener.toml."""

    broker: BrokerConfig = BrokerConfig()
    hand_over: HandOverConfig = HandOverConfig()
    helper: HelperConfig = HelperConfig()
    cluster: ClusterConfig = ClusterConfig()
    metrics: MetricsConfig = MetricsConfig()


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """One of ``broker.urls``, taken apart; ``host`` is a name or an address without brackets."""

    tls: bool
    user: str
    host: str
    port: int
    vhost: str


class NoPassword(Exception):
    """There is no password for the broker; the text says where it was looked for and what to do."""


def load(path: str | Path) -> ListenerConfig:
    """Read and check the file.

    Raises:
        SettingsError: with every fault, one line each.
    """
    file = str(path)
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SettingsError([f"{file}: cannot be read: {error.strerror}"]) from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both
        raise SettingsError([f"{file}: is not TOML: {error}"]) from None
    config = settings(ListenerConfig, table, file)
    faults = [
        *_broker_faults(config.broker),
        *_size_faults(config.broker),
        *_hand_over_faults(config.hand_over),
        *_other_faults(config),
    ]
    if faults:
        raise SettingsError([f"{file}: {fault}" for fault in faults])
    return config


def parse_url(url: str) -> BrokerUrl:
    """Take a broker's URL apart: ``amqp[s]://user@host[:port][/vhost]``, the virtual host percent-encoded.

    Raises:
        ValueError: saying what is wrong with it, without the URL.
    """
    parts = urlsplit(url)
    if parts.password is not None:
        raise ValueError("holds a password; give it as the systemd credential broker-password or in password_file")
    if parts.scheme not in _PORTS:
        raise ValueError("does not begin with amqp:// or amqps://")
    if not parts.hostname or not parts.username:
        raise ValueError("lacks a user or a host: amqp://user@host:5672/%2F is the form")
    if parts.query or parts.fragment:
        raise ValueError("has options after ? or #, which are not supported")
    return BrokerUrl(
        tls=parts.scheme == "amqps",
        user=unquote(parts.username),
        host=parts.hostname,
        port=parts.port or _PORTS[parts.scheme],
        vhost=_vhost(parts),
    )


def parse_listen(listen: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Take an address and a port apart: ``127.0.0.1:9469``, ``[::1]:9469``.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536) or bracketed != (address.version == 6):
        raise ValueError("no address and port")
    return address, int(port)


def read_password(config: BrokerConfig) -> str:
    """Read the broker's password: one line, of which its end is no part. Read it at each connect.

    Raises:
        NoPassword: it is nowhere, cannot be read, is empty, or is no single line.
    """
    for path, required in _password_files(config):
        try:
            text = one_line(read_secret(path))
        except FileNotFoundError:
            if not required:
                continue
            raise NoPassword(f"{path}: does not exist; write the broker's password into it") from None
        except OSError as error:
            raise NoPassword(f"{path}: cannot be read: {error.strerror}; it holds the broker's password") from None
        except NotOneLineError as error:
            raise NoPassword(f"{path}: {error}; it holds the broker's password") from None
        if text not in ("", _PLACEHOLDER):
            return text
        if required:
            raise NoPassword(f"{path}: is empty; write the broker's password into it")
    raise NoPassword(
        f"no password for the broker: write it into {ROOT_PASSWORD} (root, mode 0600), which the unit passes on as the"
        " credential broker-password, and restart; or set broker.password_file"
    )


def read_secret(path: Path) -> bytes:
    """Read a file of one line, and no more of one that does not end; raises OSError."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _password_files(config: BrokerConfig) -> Iterator[tuple[Path, bool]]:
    if config.password_file:
        yield Path(config.password_file), True
        return
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        yield Path(directory) / "broker-password", False
    if os.geteuid() == 0:
        yield ROOT_PASSWORD, False


def _vhost(parts: SplitResult) -> str:
    if parts.path in ("", "/"):
        return "/"
    if "/" in parts.path[1:]:
        raise ValueError("has more than one / after the host; in a virtual host write it as %2F")
    return unquote(parts.path[1:])


def _broker_faults(broker: BrokerConfig) -> Iterator[str]:
    if not broker.urls:
        yield "broker.urls: at least one URL is expected"
    for number, url in enumerate(broker.urls):
        try:
            parse_url(url)
        except ValueError as error:
            yield f"broker.urls[{number}]: {error}"
    for key in ("queue", "parked_queue", "routing_key"):
        if not 1 <= len(getattr(broker, key).encode()) <= 255:
            yield f"broker.{key}: a name of 1 to 255 bytes is expected"
    if len(broker.exchange.encode()) > 255:
        yield 'broker.exchange: a name of at most 255 bytes is expected, "" for the default exchange'
    if broker.parked_queue == broker.queue:
        yield "broker.parked_queue: another queue than broker.queue is expected"
    yield from _tls_faults(broker)


def _size_faults(broker: BrokerConfig) -> Iterator[str]:
    if broker.max_parkable < broker.max_body:
        yield "broker.max_parkable: at least broker.max_body is expected"


def _tls_faults(broker: BrokerConfig) -> Iterator[str]:
    if bool(broker.client_cert_file) != bool(broker.client_key_file):
        yield "broker.client_cert_file, broker.client_key_file: both or neither are expected"
        return
    unreadable = [
        f"broker.{key}: cannot be read: {getattr(broker, key)}"
        for key in ("password_file", "ca_file", "client_cert_file", "client_key_file")
        if getattr(broker, key) and not os.access(getattr(broker, key), os.R_OK)
    ]
    yield from unreadable
    if not unreadable:
        try:
            tls_context(broker)
        except (ssl.SSLError, OSError, ValueError) as error:
            yield f"broker.ca_file, client_cert_file, client_key_file: no certificates that can be used: {error}"


def tls_context(broker: BrokerConfig) -> ssl.SSLContext:
    """Give the context of an amqps connection: certificate and host name of the broker are always verified."""
    context = ssl.create_default_context(cafile=broker.ca_file or None)
    if broker.client_cert_file:
        context.load_cert_chain(broker.client_cert_file, broker.client_key_file, password=_no_passphrase)
    return context


def _no_passphrase() -> str:
    """Keep OpenSSL from asking for one at the terminal."""
    raise ValueError("client_key_file is encrypted, a key without a passphrase is expected")


def _hand_over_faults(hand_over: HandOverConfig) -> Iterator[str]:
    if hand_over.retry_initial > hand_over.retry_max:
        yield "hand_over.retry_initial: at most hand_over.retry_max is expected"
    for address in hand_over.ready_addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            yield f"hand_over.ready_addresses: {address!r} is no IP address"


def _other_faults(config: ListenerConfig) -> Iterator[str]:
    if config.hand_over.start_timeout > config.broker.max_hold:
        yield "hand_over.start_timeout: at most broker.max_hold is expected"
    if not config.helper.socket.startswith("/") or len(config.helper.socket.encode()) > 107:
        yield "helper.socket: an absolute path of at most 107 bytes is expected (unix(7))"
    yield from _cluster_faults(config.cluster)
    if config.metrics.listen:
        try:
            parse_listen(config.metrics.listen)
        except ValueError:
            yield 'metrics.listen: an IP address and a port are expected, such as 127.0.0.1:9469 or [::1]:9469, or ""'


def _cluster_faults(cluster: ClusterConfig) -> Iterator[str]:
    if cluster.enabled and not is_host_name(cluster.host or socket.gethostname()):
        yield "cluster.host: a name of at most 64 letters, digits, dots and hyphens is expected, as host names are"
    if not 1 <= len(cluster.exchange.encode()) <= 127:
        yield "cluster.exchange: a name of 1 to 127 bytes is expected"
    wanted = cluster.executors_per_user
    if wanted != "all" and not (isinstance(wanted, int) and wanted > 0):
        yield 'cluster.executors_per_user: "all" or a number from 1 is expected'
    if cluster.dead_after < 2 * cluster.heartbeat:
        yield "cluster.dead_after: at least twice cluster.heartbeat is expected"


_PORTS: Final = {"amqp": 5672, "amqps": 5671}
_PLACEHOLDER: Final = "-"
"""What the unit's SetCredential= gives where LoadCredential= found no file (systemd.exec(5))."""
