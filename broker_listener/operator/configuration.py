"""Both configuration files as an operator's command needs them, and the broker's password.

listener.toml is read as the listener reads it. Of helper.toml only the keys that a command needs are read, with the
helper's own defaults, which a test compares: root_helper's code is never loaded here. Both files are the
administrator's and are trusted; who may write them is the helper's question, and one of ``check``.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, get_type_hints

from broker_listener.config import ListenerConfig, NoPassword, read_password
from broker_listener.config import load as load_listener
from broker_listener.operator.outcome import Outcome, Stopped
from protocol.settings import SettingsError, settings

DIRECTORY: Final = Path("/etc/knime-peruser")


@dataclass(frozen=True, slots=True)
class SocketKeys:
    """Of ``[socket]``."""

    path: str = "/run/knime-peruser/helper.sock"
    operator_path: str = "/run/knime-peruser/operator.sock"
    listener_user: str = "knime-listener"
    gate_user: str = "knime-gate"


@dataclass(frozen=True, slots=True)
class ExecutorKeys:
    """Of ``[executor]``."""

    home: str = "/opt/knime"
    msgq_file: str = ""
    workspaces: str = "/srv/knime/workspaces"
    temp: str = "/srv/knime/temp"


@dataclass(frozen=True, slots=True)
class UserKeys:
    """Of ``[users]``."""

    home_roots: tuple[str, ...] = ("/home",)
    allow_groups: tuple[str, ...] = ()
    deny_groups: tuple[str, ...] = (
        *("root", "sudo", "wheel", "adm", "disk", "shadow", "docker", "lxd", "incus", "libvirt", "kvm"),
        *("systemd-journal", "knime-listener"),
    )
    map: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class WorkspaceKeys:
    """Of ``[workspace]``."""

    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class LimitKeys:
    """Of ``[limits]``."""

    max_executors: int = 100
    stop_grace: float = 60.0
    idle_after: float = 0.0


@dataclass(frozen=True, slots=True)
class AuditKeys:
    """Of ``[audit]``."""

    path: str = "/var/log/knime-peruser/audit.jsonl"
    keep_days: int = 90


@dataclass(frozen=True, slots=True)
class HelperKeys:
    """Of helper.toml what commands need."""

    socket: SocketKeys = SocketKeys()
    executor: ExecutorKeys = ExecutorKeys()
    users: UserKeys = UserKeys()
    workspace: WorkspaceKeys = WorkspaceKeys()
    limits: LimitKeys = LimitKeys()
    audit: AuditKeys = AuditKeys()


@dataclass(frozen=True, slots=True)
class Configuration:
    """Where both files are, and what they say."""

    directory: Path
    listener: ListenerConfig
    helper: HelperKeys

    @property
    def helper_toml(self) -> Path:
        """The helper's file."""
        return self.directory / "helper.toml"

    @property
    def listener_toml(self) -> Path:
        """The listener's file."""
        return self.directory / "listener.toml"


def load(directory: Path = DIRECTORY) -> Configuration:
    """Read both files.

    Raises:
        Stopped: one of them cannot be read or holds faults; with every fault, one line each.
    """
    try:
        listener = load_listener(directory / "listener.toml")
        return Configuration(directory, listener, load_helper_keys(directory / "helper.toml"))
    except SettingsError as error:
        raise Stopped(Outcome.USAGE, str(error)) from None


def load_helper(directory: Path) -> HelperKeys:
    """Read helper.toml alone: a command that does not talk to the broker does not need listener.toml to be right.

    Raises:
        Stopped: it cannot be read or holds faults; with every fault, one line each.
    """
    try:
        return load_helper_keys(directory / "helper.toml")
    except SettingsError as error:
        raise Stopped(Outcome.USAGE, str(error)) from None


def load_helper_keys(file: Path) -> HelperKeys:
    """Read of helper.toml what commands need; every other key is the helper's own matter.

    Raises:
        SettingsError: with one line for each fault.
    """
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError([f"{file}: cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:
        raise SettingsError([f"{file}: is not TOML: {error}"]) from None
    return settings(HelperKeys, _known(HelperKeys, table), str(file))


def broker_password(configuration: Configuration) -> str:
    """Read the listener's password: where listener.toml says, else beside it. Where it is, root alone can read it.

    Raises:
        Stopped: there is none, or it cannot be read.
    """
    broker = configuration.listener.broker
    beside = configuration.directory / "broker-password"
    try:
        return read_password(broker if broker.password_file else replace(broker, password_file=str(beside)))
    except NoPassword as error:
        raise Stopped(Outcome.NOT_PERMITTED, f"{error}; run this command as root") from None


def _known(schema: Any, table: Mapping[str, object]) -> dict[str, object]:
    """Give the table without the keys that the schema does not have."""
    hints = get_type_hints(schema)
    known: dict[str, object] = {}
    for entry in fields(schema):
        value = table.get(entry.name)
        if value is not None:
            deeper = is_dataclass(hints[entry.name]) and isinstance(value, Mapping)
            known[entry.name] = _known(hints[entry.name], value) if deeper else value  # type: ignore[arg-type]  # deeper
    return known
