"""What stands in the new files for the predecessor's keys, what has no counterpart, and why. Pure."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from broker_listener.operator.predecessor.configuration import Predecessor
from broker_listener.operator.predecessor.names import Names

Toml = str | int | float | list[str]


@dataclass(frozen=True, slots=True)
class File:
    """A file to write."""

    name: str
    text: str = field(repr=False)
    mode: int
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """What became of a key, or what is different from now on."""

    subject: str
    text: str


def files(old: Predecessor, names: Names) -> tuple[File, ...]:
    """Give the four files."""
    return (
        File("listener.toml", _document(_listener(old)), 0o644),
        File("helper.toml", _document(_helper(old, names)), 0o644),
        File("broker-password", f"{old.rabbitmq_client_password}\n", 0o600, secret=True),
        File("executor-msgq", f"{msgq(old)}\n", 0o600, secret=True),
    )


def notes(old: Predecessor, unknown: list[str], names: Names) -> Iterator[Note]:
    """Say what has no counterpart and why, and what else an administrator should know."""
    for key in unknown:
        yield Note(key, "is no key of the predecessor and was left out")
    for key, why in WITHOUT_COUNTERPART.items():
        yield Note(key, f"{getattr(old, key)!r}: {why}")
    if old.max_attempts_executor_start != _attempts(old):
        yield Note("max_attempts_executor_start", f"1 to 1000 are possible; {_attempts(old)} was written")
    if (days := _keep_days(old)) is None:
        yield Note("log_rotation_keep", "days cannot be told from it: the audit log is kept 90 days (audit.keep_days)")
    else:
        yield Note("log_rotation_keep", f"the audit log is kept {days} days, as the predecessor's log was")
    if old.rabbitmq_protocol == "amqps":
        yield Note(
            "rabbitmq_protocol", "certificate and name are verified by the listener; executors use Java's own trust"
        )
    yield Note(
        "rabbitmq_client_user",
        "executors have the same account as before, and it is the listener's, too: workflows can read its password."
        " Give executors an account of their own and write it into executor-msgq (README, Installing it, 3)",
    )
    yield Note("users", "root, uids below 1000 and members of sudo, docker and the like get no executor any more")
    yield Note(
        "reservation", "the rule is (user = 'NAME') with the name exactly as in the job; it was lower-cased, bare"
    )
    for text in names.notes:
        yield Note("names", text)


def msgq(old: Predecessor) -> str:
    """Give the executors' broker URL: credentials and vhost in the first, every part percent-encoded.

    The predecessor left the port out of the first and encoded nothing.
    """
    account = f"{_quoted(old.rabbitmq_client_user)}:{_quoted(old.rabbitmq_client_password)}"
    first, *others = (f"{_host(host)}:{old.rabbitmq_port}" for host in old.hosts)
    scheme = old.rabbitmq_protocol
    return ",".join(
        [f"{scheme}://{account}@{first}/{_quoted(old.vhost)}", *(f"{scheme}://{other}" for other in others)]
    )


def temp_of(workspaces: str) -> str:
    """Give where temporary directories go: beside the workspaces, never among them."""
    return f"{_path(workspaces)}-temp"


def _listener(old: Predecessor) -> dict[str, Mapping[str, Toml]]:
    vhost, account = _quoted(old.vhost), _quoted(old.rabbitmq_client_user)
    urls = [f"{old.rabbitmq_protocol}://{account}@{_host(host)}:{old.rabbitmq_port}/{vhost}" for host in old.hosts]
    tls = {"ca_file": old.ca_cert_file} if old.rabbitmq_protocol == "amqps" else {}
    return {
        "broker": {
            "urls": urls,
            **tls,
            "queue": old.rabbitmq_queue_name,
            "exchange": old.rabbitmq_exchange,
            "routing_key": old.rabbitmq_routing_key or old.rabbitmq_queue_name,
            "parked_queue": f"{old.rabbitmq_queue_name}.parked",
        },
        "hand_over": {"ready_delay": _delay(old), "max_start_attempts": _attempts(old)},
    }


def _helper(old: Predecessor, names: Names) -> dict[str, Mapping[str, Toml]]:
    workspaces = _path(old.knime_workspace_parent_folder)
    executor: dict[str, Toml] = {"home": _path(old.knime_home), "workspaces": workspaces, "temp": temp_of(workspaces)}
    tables: dict[str, Mapping[str, Toml]] = {"executor": executor}
    if names.mapping:
        tables["users.map"] = dict(names.mapping)
    if names.workspaces:
        tables["workspace.names"] = dict(names.workspaces)
    if (days := _keep_days(old)) is not None:
        tables["audit"] = {"keep_days": days}
    return tables


def _document(tables: Mapping[str, Mapping[str, Toml]]) -> str:
    parts = [
        "# Written by knime-peruser import-config. What is left out has its default: see the manual's example file."
    ]
    for name, table in tables.items():
        parts.append("\n".join([f"[{name}]", *(f"{_key(key)} = {_value(value)}" for key, value in table.items())]))
    return "\n\n".join(parts) + "\n"


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else _value(key)


def _value(value: Toml) -> str:
    """Give a value as TOML: JSON's strings, numbers and lists of strings are, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _path(path: str) -> str:
    return "/" + os.path.normpath(path).lstrip("/")


def _delay(old: Predecessor) -> float:
    return min(float(old.seconds_sleep_executor_start), 600.0)


def _attempts(old: Predecessor) -> int:
    return min(max(old.max_attempts_executor_start, 1), 1000)


def _keep_days(old: Predecessor) -> int | None:
    """Give for how many days the predecessor kept its log, None where it did not rotate by days."""
    if old.log_rotation_when.lower() not in {"d", "midnight"} or not old.log_rotation_keep:
        return None
    return min(old.log_rotation_keep * old.log_rotation_interval, 36_500)


WITHOUT_COUNTERPART: Final = {
    "log_file": "both daemons log to the journal: journalctl -u knime-root-helper -u knime-broker-listener",
    "log_level": "there is one level; no body of a job is ever logged",
    "seconds_sleep_executor_start": 'a job is handed over when its executor is connected; only ready = "delay" waits',
    "seconds_sleep_executor_existing": "a job of a running executor is handed over at once",
}
