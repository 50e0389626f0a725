"""What helper.toml holds, as frozen dataclasses: everything that root does is decided here, by the administrator alone.

Pure: the keys, their types, ranges and defaults. It is read, and believed or refused, in config_file.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Final

from protocol.settings import within

_DENY_GROUPS: Final = (
    *("root", "sudo", "wheel", "adm", "disk", "shadow", "docker", "lxd", "incus", "libvirt", "kvm"),
    *("systemd-journal", "knime-listener"),
)


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


def amount(value: int | str) -> int:
    """Give the number of an integer or of a text such as ``64K`` (systemd's suffixes, base 1024); -1 for no such."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", str(value), re.ASCII)
    return int(match[1]) * 1024 ** " KMGT".index(match[2] or " ") if match else -1
