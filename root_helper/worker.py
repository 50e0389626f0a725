"""One start, step by step, in a process of its own, until execve: the operation as a checklist.

It trusts the configuration, and of the request only that the name is in the grammar. Whatever hangs here (NSS, PAM, a
home on a dead server) hangs this process alone: the supervisor holds the deadlines. It says what it found on one
pipe, a line of JSON at a time, and executes nothing before it reads ``G`` from the other.
"""

import fcntl
import json
import os
from typing import Final, NamedTuple, NoReturn

from protocol.messages import FailedReason, RefusedReason
from protocol.names import UserName
from protocol.settings import SettingsError
from root_helper import accounts, scope
from root_helper.acl import private_acl
from root_helper.config import HelperConfig
from root_helper.config_file import read_msgq
from root_helper.directories import Conflict, NotPrepared, ensure_home, ensure_private
from root_helper.executors import scope_facts
from root_helper.policy import Account, Undecided, directory_name
from root_helper.spawn import SpawnError, become_user, environment, fresh_process

_MAX_TEXT: Final = 500


class _StillThere(Exception):
    """Something of an earlier executor runs; no bad start."""


_FAILURES: Final[dict[type[Exception], FailedReason]] = {
    _StillThere: FailedReason.BACKING_OFF,
    Undecided: FailedReason.LOOKUP_TIMEOUT,
    scope.ScopeUnavailable: FailedReason.SCOPE_UNAVAILABLE,
    NotPrepared: FailedReason.PREPARE_FAILED,
    SettingsError: FailedReason.PREPARE_FAILED,
    SpawnError: FailedReason.SPAWN_FAILED,
}


class Task(NamedTuple):
    """What to start: the KNIME user, the OS user that stands for it, and where the supervisor keeps its state.

    ``known``: the supervisor has seen the end of the user's last executor.
    """

    user: UserName
    os_user: UserName
    state_directory: str
    known: bool


class Program(NamedTuple):
    """What execve is called with; the first argument is the path, too."""

    arguments: list[str]
    environment: dict[str, str]


def run(task: Task, config: HelperConfig, report: int, go: int) -> NoReturn:
    """Do one start and never return: the process becomes the executor or ends."""
    try:
        fresh_process(keep=(report, go))
        program = _prepare(task, config, report)
        if os.read(go, 1) == b"G":
            _execute(program)
    except Conflict as error:
        _tell(report, refused=error.reason, text=str(error))
    except Exception as error:  # noqa: BLE001  the last thing that this process does is to say why
        _tell(report, failed=_FAILURES.get(type(error), FailedReason.PREPARE_FAILED), text=str(error))
    finally:
        os._exit(1)


def _prepare(task: Task, config: HelperConfig, report: int) -> Program:
    account = _who(task.os_user, config)
    _tell(report, at="looked_up", uid=account.uid)
    _wait_for_others_of(account, task.state_directory)
    ensure_home(account, config.users.home_roots)
    name = directory_name(task.user, account.name, config.workspace.names)
    acl = private_acl([_by_number(entry) for entry in config.workspace.acl.extra])
    workspace = ensure_private(config.executor.workspaces, name, account, acl)
    temp = ensure_private(config.executor.temp, name, account, acl)
    _hold(temp, known=task.known)
    program = _program(task, account, name, config)
    limits = _limits_of(account, config)
    mounts = (config.executor.workspaces, config.executor.temp)
    facts = scope_facts(task.user, account.name, account.uid)
    own_scope = scope.enter(scope.unit_name(name), facts, mounts, config.limits.stop_grace, limits)
    become_user(account, workspace, limits, f"knime-executor-{name}")
    unit, cgroup = own_scope or (None, None)
    _tell(report, at="ready", os_user=account.name, uid=account.uid, scope=unit, cgroup=cgroup)
    return program


def _who(os_user: UserName, config: HelperConfig) -> Account:
    account, reason = accounts.decide(os_user, config)
    if account is None or reason is not None:
        found = f"{account.name!a}, uid {account.uid}" if account else "nobody"  # another name is to be mapped
        raise Conflict(reason or RefusedReason.UNKNOWN_USER, os_user, f"is {found} to the directory")
    return account


def _wait_for_others_of(account: Account, state_directory: str) -> None:
    """Let two KNIME users of one account be prepared one after the other; the lock goes with execve or this process."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fcntl.flock(os.open(os.path.join(state_directory, f".uid-{account.uid}"), flags, 0o600), fcntl.LOCK_EX)


def _limits_of(account: Account, config: HelperConfig) -> dict[str, int]:
    """Give the limits of all executors, and over them those of the first group of the list that the user is in."""
    groups = config.executor.group_limits
    own = next((limits for limits in groups if accounts.group_id(limits.group) in account.groups), None)
    return config.executor.limits.amounts() | (own.amounts() if own else {})


def _hold(temp: int, *, known: bool) -> None:
    """Lock the temp directory for as long as a process of the executor lives, so that age-based cleaning spares it.

    The one descriptor beyond 0, 1 and 2 that an executor is given: its own directory's. A lock of the helper's would
    be gone while the helper is restarted (systemd-tmpfiles passes by what is locked: tmpfiles.d(5)). Where it is held
    by an executor that the supervisor does not know (its state file was lost, and it has no scope), that one lives.

    Raises:
        _StillThere: it does, or age-based cleaning holds the directory for a moment.
    """
    if not known:
        try:
            fcntl.flock(temp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # EBADF on NFS, which locks for writing only what is open for writing: flock(2)
            if isinstance(error, BlockingIOError):
                raise _StillThere("an executor that was lost sight of holds the temp directory; end it") from error
    fcntl.flock(temp, fcntl.LOCK_SH)
    os.set_inheritable(temp, True)


def _by_number(entry: str) -> str:
    """Give an entry such as ``g:knime-backup:r-x``, whose form was checked with the configuration, with the id."""
    kind, name, permissions = entry.split(":")
    found = accounts.group_id(name) if kind == "g" else (accounts.user_ids(name) or (None,))[0]
    if found is None:
        raise NotPrepared("workspace.acl.extra", f"NSS knows no {name}")
    return f"{kind}:{found}:{permissions}"


def _program(task: Task, account: Account, name: str, config: HelperConfig) -> Program:
    workspace = os.path.join(config.executor.workspaces, name)
    temp = os.path.join(config.executor.temp, name)
    values = {
        "workspace": workspace,
        "temp": temp,
        "home": account.home,
        "os_user": account.name,
        "knime_user": task.user,
        "uid": account.uid,
    }
    knime = os.path.join(config.executor.home, "knime")
    words = (*config.executor.prefix, knime, *config.executor.arguments)
    arguments = [word.format(**values) for word in words]
    own = {
        "KNIME_EXECUTOR_MSGQ": read_msgq(config),
        "KNIME_EXECUTOR_RESERVATION": config.executor.reservation.format(**values),
        **{key: value.format(**values) for key, value in config.executor.environment.items()},
    }
    return Program(arguments, environment(account, workspace, temp, own))


def _execute(program: Program) -> None:
    try:
        os.execve(program.arguments[0], *program)
    except OSError as error:
        raise SpawnError(f"execve {program.arguments[0]}: {error.strerror} (errno {error.errno})") from error


def _tell(report: int, **facts: object) -> None:
    """Write one line, short enough to be whole: PIPE_BUF, pipe(7)."""
    facts = {key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in facts.items()}
    os.write(report, json.dumps(facts).encode("ascii") + b"\n")
