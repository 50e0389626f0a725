"""What a well-typed helper.toml must hold besides: paths, placeholders, names, ranges.

Pure. It trusts nothing of the values but their types; each fault names the key and what was expected.
"""

import os
import re
from collections.abc import Iterator
from typing import Final

from protocol.names import parse_user_name
from protocol.settings import shown_key
from root_helper.config import HelperConfig

_PLACEHOLDERS: Final = "{workspace} {temp} {home} {os_user} {knime_user} {uid}"
_PLACEHOLDER: Final = re.compile("|".join(map(re.escape, _PLACEHOLDERS.split())))
_FIXED: Final = re.compile(r"HOME|LOGNAME|USER|SHELL|PATH|LANG|PWD|TMPDIR|KNIME_EXECUTOR_(MSGQ|RESERVATION|TEMP_DIR)")
_RANGES: Final = {
    "memory_max": (2**24, 2**62),
    "memory_high": (2**24, 2**62),
    "cpu_weight": (1, 10_000),  # systemd.resource-control(5)
    "io_weight": (1, 10_000),
    "tasks_max": (16, 2**22),
    "nofile": (64, 2**30),
    "core": (0, 2**62),
}
_LEAST_IDLE: Final = 120
"""Seconds: twice the time after which the listener asks again for a user with traffic."""
_MAX_SOCKET_PATH: Final = 107  # sun_path less its NUL, unix(7)


def rule_faults(config: HelperConfig) -> list[str]:
    """Say what is wrong with the configuration as such, one line a fault; the host is not looked at."""
    return [fault for rule in _RULES for fault in rule(config)]


def _paths(config: HelperConfig) -> Iterator[str]:
    executor, socket = config.executor, config.socket
    paths = {
        "socket.path": socket.path,
        "socket.operator_path": socket.operator_path,
        "executor.home": executor.home,
        "executor.workspaces": executor.workspaces,
        "executor.temp": executor.temp,
        "audit.path": config.audit.path,
        **{f"users.home_roots[{n}]": root for n, root in enumerate(config.users.home_roots)},
        **({"executor.msgq_file": executor.msgq_file} if executor.msgq_file else {}),
        **({"executor.prefix[0]": executor.prefix[0]} if executor.prefix else {}),
    }
    for key, path in paths.items():
        if not re.fullmatch(r"(/[^/{}]+)+", path) or not path.isprintable() or os.path.normpath(path) != path:
            yield f"{key}: an absolute path without '.', '..', '//', braces or a '/' at its end is expected"
    inner, outer = sorted((f"{executor.workspaces}/", f"{executor.temp}/"), key=len, reverse=True)
    if inner.startswith(outer):
        yield "executor.temp: a directory that is neither executor.workspaces, nor in it, nor around it is expected"


def _socket(config: HelperConfig) -> Iterator[str]:
    socket = config.socket
    for key, path in (("path", socket.path), ("operator_path", socket.operator_path)):
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            yield f"socket.{key}: at most {_MAX_SOCKET_PATH} bytes are expected"
    if socket.path == socket.operator_path:
        yield "socket.operator_path: another path than socket.path is expected"
    for key, account in (("listener_user", socket.listener_user), ("gate_user", socket.gate_user)):
        if parse_user_name(account) is None or account == "root":
            yield f"socket.{key}: the name of an unprivileged system user is expected"
    if socket.listener_user == socket.gate_user:
        yield "socket.gate_user: another user than socket.listener_user is expected"


def _templates(config: HelperConfig) -> Iterator[str]:
    executor = config.executor
    templates = {
        "executor.reservation": executor.reservation,
        **{f"executor.arguments[{n}]": text for n, text in enumerate(executor.arguments)},
        **{f"executor.prefix[{n}]": text for n, text in enumerate(executor.prefix)},
        **{f"executor.environment.{shown_key(name)}": text for name, text in executor.environment.items()},
    }
    for key, text in templates.items():
        if re.search(r"[{}\0]", _PLACEHOLDER.sub("", text)):
            yield f"{key}: no NUL, and no brace is expected but in {_PLACEHOLDERS}"
    if "{home}" in executor.reservation:  # may hold a quote: it is whatever the directory service says
        yield "executor.reservation: {home} cannot stand in it"
    # A name of the grammar cannot end a quoted text of KNIME's rule; bare, it could be an operator such as OR.
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", executor.reservation)
    if "{knime_user}" in unquoted or "{knime_user}" not in executor.reservation or re.search("['\"]", unquoted):
        yield "executor.reservation: '{knime_user}' in quotes is expected"


def _environment(config: HelperConfig) -> Iterator[str]:
    for name in config.executor.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
            yield f"executor.environment.{shown_key(name)}: a name of A-Z a-z 0-9 _ is expected, no digit first"
        elif _FIXED.fullmatch(name):
            yield f"executor.environment.{name}: is set by the helper itself; take it out"


def _names(config: HelperConfig) -> Iterator[str]:
    qualified = config.users.qualified_names
    for key, names in (("users.map", config.users.map), ("workspace.names", config.workspace.names)):
        for pair in names.items():
            for name in pair:
                if parse_user_name(name, qualified=qualified) is None:
                    yield f"{key}: {name[:80]!a} is no user name; the grammar is in the manual"
    users = config.users
    lists = {"allow_groups": users.allow_groups, "deny_groups": users.deny_groups, "deny_users": users.deny_users}
    for key, entries in lists.items():
        if not all(entry and entry.isprintable() for entry in entries):
            yield f"users.{key}: names are expected, none empty"
    if users.min_uid > users.max_uid:
        yield "users.max_uid: a number not below users.min_uid is expected"


def _acl(config: HelperConfig) -> Iterator[str]:
    seen = set()
    for n, entry in enumerate(config.workspace.acl.extra):
        match = re.fullmatch(r"([ug]:[^:,\0-\x20\x7f][^:,\0-\x1f\x7f]*):[r-][w-][x-]", entry)
        if match is None or match[1] in seen:
            yield f"workspace.acl.extra[{n}]: u:NAME:rwx or g:NAME:rwx ('-' = not given), each name once, is expected"
        seen.add(match and match[1])


def _limits(config: HelperConfig) -> Iterator[str]:
    tables = {"executor.limits": config.executor.limits}
    tables |= {f"executor.group_limits[{n}]": limits for n, limits in enumerate(config.executor.group_limits)}
    for where, limits in tables.items():
        for key, number in limits.amounts().items():
            low, high = _RANGES[key]
            if not low <= number <= high:
                yield f"{where}.{key}: an integer from {low} to {high} is expected, also with K, M, G or T"
    if 0 < config.limits.idle_after < _LEAST_IDLE:
        yield f"limits.idle_after: 0 or at least {_LEAST_IDLE} is expected: the listener asks once a minute"


_RULES: Final = (_paths, _socket, _templates, _environment, _names, _acl, _limits)
