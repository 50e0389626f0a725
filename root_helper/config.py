"""helper.toml to frozen dataclasses: everything that root does is decided here, by the administrator alone.

It trusts a file that only root can have written, in directories that only root can change; no environment variable
overrides a key. What this version does not do yet is refused, never ignored. The executors' broker URL is read by
the worker alone, and no fault ever quotes it.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Final

from protocol.settings import SettingsError, settings, within
from root_helper.config_rules import amount, rule_faults
from root_helper.pam import SERVICE_FILE
from root_helper.trusted_files import (
    opened_root_owned,
    root_owned_text,
    trusted_directory_faults,
    trusted_program_faults,
)

MSGQ_FILE: Final = "/etc/knime-peruser/executor-msgq"
"""Where the executors' broker URL stands if neither msgq_file nor systemd's credential says otherwise."""
_DENY_GROUPS: Final = (
    *("root", "sudo", "wheel", "adm", "disk", "shadow", "docker", "lxd", "incus", "libvirt", "kvm"),
    *("systemd-journal", "knime-listener"),
)
_MSGQ: Final = re.compile(r"amqps?://[!-+\--~]+(?:,amqps?://[!-+\--~]+)*", re.ASCII)


def load(path: str) -> "HelperConfig":
    """Read the configuration.

    Raises:
        SettingsError: with one line for each fault.
    """
    text = root_owned_text(path, others_may_read=True)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError([f"{path}: TOML is expected: {error}"]) from None
    config = settings(HelperConfig, table, path)
    if faults := rule_faults(config):
        raise SettingsError([f"{path}: {fault}" for fault in faults])
    return config


def config_faults(config: "HelperConfig") -> list[str]:
    """Say what of this host does not fit the configuration; reads no secret."""
    executor = config.executor
    directories = {
        "socket.path": os.path.dirname(config.socket.path),
        "socket.operator_path": os.path.dirname(config.socket.operator_path),
        "executor.workspaces": executor.workspaces,
        "executor.temp": executor.temp,
        **{f"users.home_roots[{n}]": root for n, root in enumerate(config.users.home_roots)},
    }
    faults = [f"{key}: {fault}" for key, path in directories.items() for fault in trusted_directory_faults(path)]
    log_directory = os.path.dirname(config.audit.path)  # this one alone: /var/log is a group's on Ubuntu
    faults += [f"audit.path: {fault}" for fault in trusted_directory_faults(log_directory) if log_directory in fault]
    faults += [f"executor.home: {fault}" for fault in trusted_program_faults(os.path.join(executor.home, "knime"))]
    if not os.path.exists(SERVICE_FILE):
        faults.append(f"{SERVICE_FILE}: is missing, PAM would ask the stack `other`: install systemd/knime-peruser.pam")
    try:
        with opened_root_owned(_msgq_path(config), others_may_read=False):
            pass
    except SettingsError as error:
        faults += [f"executor.msgq_file: {fault}" for fault in error.faults]
    return faults


def read_msgq(config: "HelperConfig") -> str:
    """Give KNIME_EXECUTOR_MSGQ, the executors' broker URL. It holds a password.

    Raises:
        SettingsError: there is none, or others can read it. The text holds nothing of the content.
    """
    path = _msgq_path(config)
    url = root_owned_text(path, others_may_read=False).removesuffix("\n")
    if not _MSGQ.fullmatch(url):
        expected = "amqp://user:password@host/vhost[,amqp://host2:port...]"
        raise SettingsError([f"{path}: one line is expected: {expected}; write {MSGQ_FILE}, restart the helper"])
    return url


def _msgq_path(config: "HelperConfig") -> str:
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")  # set by systemd alone, systemd.exec(5)
    credential = os.path.join(credentials, "executor-msgq") if credentials else ""
    return config.executor.msgq_file or (credential if os.path.lexists(credential) else MSGQ_FILE)


@dataclass(frozen=True, slots=True)
class SocketConfig:
    """Where the helper listens, and who may talk to it."""

    path: str = "/run/knime-peruser/helper.sock"
    operator_path: str = "/run/knime-peruser/operator.sock"
    listener_user: str = "knime-listener"
    gate_user: str = "knime-gate"


@dataclass(frozen=True, slots=True)
class LimitValues:
    """Limits of one executor; None leaves what the system gives."""

    memory_max: int | str | None = None
    memory_high: int | str | None = None
    cpu_weight: int | str | None = None
    io_weight: int | str | None = None
    tasks_max: int | str | None = None
    nofile: int | str | None = None
    core: int | str | None = None

    def amounts(self) -> dict[str, int]:
        """Give the limits that are set, as numbers under their keys."""
        limits = {entry.name: getattr(self, entry.name) for entry in fields(LimitValues)}
        return {key: amount(value) for key, value in limits.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimit(LimitValues):
    """Limits of the executors of a group's members."""

    group: str


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """What is executed, with what, and where."""

    home: str = "/opt/knime"
    arguments: tuple[str, ...] = (
        "-nosplash",
        "-consolelog",
        "-data",
        "{workspace}",
        "-application",
        "com.knime.enterprise.slave.KNIME_REMOTE_APPLICATION",
    )
    reservation: str = "(user = '{knime_user}')"
    msgq_file: str = ""
    workspaces: str = "/srv/knime/workspaces"
    temp: str = "/srv/knime/temp"
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    limits: LimitValues = LimitValues()
    group_limits: tuple[GroupLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class UsersConfig:
    """Who may have an executor."""

    min_uid: int = within(1000, 1, 2**32 - 2)
    max_uid: int = within(2**32 - 3, 1, 2**32 - 2)
    home_roots: tuple[str, ...] = ("/home",)
    allow_groups: tuple[str, ...] = ()
    deny_groups: tuple[str, ...] = _DENY_GROUPS
    deny_users: tuple[str, ...] = ("root", "nobody")
    lowercase: bool = True
    qualified_names: bool = False
    max_per_os_user: int = within(4, 1, 1000)
    map: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class AclConfig:
    """Who else may use a workspace."""

    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkspaceConfig:
    """Whose workspaces are whose: ``names`` has OS user -> the KNIME user that owns <workspaces>/<os user>."""

    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    acl: AclConfig = AclConfig()


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """The helper's own bounds. Times in seconds."""

    max_executors: int = within(100, 1, 10_000)
    starts_per_user_per_minute: int = within(6, 1, 1000)
    starts_per_second: int = within(50, 1, 1000)
    lookup_timeout: float = within(10.0, 0.1, 300)
    prepare_timeout: float = within(30.0, 0.1, 600)
    stop_grace: float = within(60.0, 0.1, 3600)
    idle_after: float = within(0.0, 0, 2_592_000)
    idle_cpu: float = within(0.02, 0, 1)


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """Where the audit log is and how long it is kept."""

    path: str = "/var/log/knime-peruser/audit.jsonl"
    rotate_size: int = within(104_857_600, 4096, 2**40)
    keep_days: int = within(90, 1, 36_500)


@dataclass(frozen=True, slots=True)
class HelperConfig:
    """The whole file."""

    socket: SocketConfig = SocketConfig()
    executor: ExecutorConfig = ExecutorConfig()
    users: UsersConfig = UsersConfig()
    workspace: WorkspaceConfig = WorkspaceConfig()
    limits: LimitsConfig = LimitsConfig()
    audit: AuditConfig = AuditConfig()
