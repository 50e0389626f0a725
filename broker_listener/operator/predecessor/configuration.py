"""The predecessor's JSON configuration, read: every key that its manual has, with the default of the file it came with.

The file is the administrator's. It holds a password, which no message here quotes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Final

from broker_listener.operator.outcome import Outcome, Stopped
from protocol.settings import SettingsError, one_of, settings, shown_key, within

MAX_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Predecessor:
    """Its keys."""

    log_file: str = ""
    log_level: str = "INFO"
    log_rotation_when: str = "d"
    log_rotation_interval: int = within(1, 1, 10_000)
    log_rotation_keep: int = within(90, 0, 100_000)
    ca_cert_file: str = ""
    rabbitmq_host_name: str | tuple[str, ...] = ""
    rabbitmq_virtual_host: str = "/"
    rabbitmq_client_user: str = ""
    rabbitmq_client_password: str = field(default="", repr=False)
    rabbitmq_port: int = within(5672, 1, 65535)
    rabbitmq_protocol: str = one_of("amqp", "amqps")
    rabbitmq_queue_name: str = "knime-jobs"
    rabbitmq_exchange: str = "knime-server2executorknime-jobs"
    rabbitmq_routing_key: str = "new-work"
    knime_home: str = "/opt/knime"
    knime_workspace_parent_folder: str = "/srv/knime/workspaces"
    max_attempts_executor_start: int = within(10, 0, 1_000_000)
    seconds_sleep_executor_start: float = within(3.0, 0, 86_400)
    seconds_sleep_executor_existing: float = within(0.5, 0, 86_400)
    local_knime_user_os_user_mapping: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The broker's nodes, in the order of the file."""
        names = self.rabbitmq_host_name
        return (names,) if isinstance(names, str) else names

    @property
    def vhost(self) -> str:
        """The virtual host; an empty one is the broker's default, as administrators mean it."""
        return self.rabbitmq_virtual_host or "/"


def read(file: Path) -> tuple[Predecessor, list[str]]:
    """Read the file; give it, and the keys in it that the predecessor never had.

    Raises:
        Stopped: it cannot be read, or holds faults; all of them, one line each.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        table = json.loads(data.decode("utf-8")) if len(data) <= MAX_BYTES else None
        json.dumps(table, ensure_ascii=False).encode("utf-8")  # an escape in JSON may be half a character
    except OSError as error:
        raise Stopped(Outcome.USAGE, f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Stopped(Outcome.USAGE, f"{file}: is not JSON in UTF-8") from None
    if not isinstance(table, dict):
        raise Stopped(Outcome.USAGE, f"{file}: a JSON object of at most {MAX_BYTES} bytes is expected")
    known = {entry.name for entry in fields(Predecessor)}
    try:
        old = settings(Predecessor, {key: value for key, value in table.items() if key in known}, str(file))
    except SettingsError as error:
        raise Stopped(Outcome.USAGE, str(error)) from None
    if faults := [f"{file}: {fault}" for fault in _faults(old)]:
        raise Stopped(Outcome.USAGE, "\n".join(faults))
    return old, [shown_key(key) for key in table if key not in known]


def _faults(old: Predecessor) -> list[str]:
    faults = []
    if not all(old.hosts):
        faults.append("rabbitmq_host_name: a host name or a list of them is expected")
    given = ("rabbitmq_client_user", "rabbitmq_client_password", "rabbitmq_queue_name")
    faults += [f"{key}: must be given" for key in given if not getattr(old, key)]
    paths = ("knime_home", "knime_workspace_parent_folder")
    faults += [f"{key}: an absolute path is expected" for key in paths if not getattr(old, key).startswith("/")]
    return faults
