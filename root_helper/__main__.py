"""The command knime-root-helper: checks itself and its configuration, takes the lock, forks the gate, serves.

It trusts its command line (root's own) and the root-owned configuration. No environment variable changes what it
does, but for systemd's own (NOTIFY_SOCKET, CREDENTIALS_DIRECTORY, STATE_DIRECTORY).
"""

import argparse
import fcntl
import json
import logging
import os
import sys
from dataclasses import asdict
from typing import Final, NoReturn

from protocol.record import Event
from protocol.settings import SettingsError
from root_helper import accounts
from root_helper.audit import AuditLog
from root_helper.config import HelperConfig
from root_helper.config_file import config_faults, load
from root_helper.gateway import DESCRIPTORS, Gateway
from root_helper.log import log_to
from root_helper.loop import Loop
from root_helper.policy import Undecided, directory_name, os_user_of
from root_helper.scope import systemd_is_there, unit_name
from root_helper.server import Server, say
from root_helper.spawn import allow_descriptors
from root_helper.supervisor import Supervisor

_log: Final = logging.getLogger("helper")
_CONFIGURATION: Final = 2
_LOCK_HELD: Final = 75
_DESCRIPTORS_A_START: Final = 3  # its pidfd and two pipes; an executor has one, and is counted with the starts
_HOST: Final = 1
"""Not a fault of the file, after which nobody would start us again: accounts, mounts and credentials come late."""
_DESCRIPTION: Final = """\
Starts KNIME Executors as the users that they work for. Runs as root, in the foreground, logs to stderr. Running
executors outlive it; a new one adopts them. knime-root-helper(8) says more."""
_EPILOG: Final = """\
exit status:
  0   ended by SIGTERM or SIGINT; --check found no fault; --explain: the user may have an executor
  1   the host lacks what the configuration names (account, directory, file), one line for each fault on stderr;
      --explain: the user may not, or it could not be decided
  2   usage or configuration, one line for each fault; --check: any fault
  4   not run as root
  75  another helper holds the lock"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="knime-root-helper", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", required=True, help="helper.toml; nobody but root may write it")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="validate configuration and host, touch nothing, and exit")
    mode.add_argument("--explain", metavar="USER", help="print what a start for this KNIME user would decide, as JSON")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        _leave(4, ["knime-root-helper: must be run as root: it starts processes of other users"])
    os.umask(0o077)
    try:
        config = load(arguments.config)
    except SettingsError as error:
        _leave(_CONFIGURATION, error.faults)
    if arguments.explain is not None:
        sys.exit(_explain(arguments.explain, config))
    if faults := [f"{arguments.config}: {fault}" for fault in (*config_faults(config), *_host_faults(config))]:
        _leave(_CONFIGURATION if arguments.check else _HOST, faults)
    if not arguments.check:
        _serve(config)


def _serve(config: HelperConfig) -> None:
    log_to(sys.stderr.fileno())
    run_directory = os.path.dirname(config.socket.path)
    lock = os.open(os.path.join(run_directory, "helper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _leave(_LOCK_HELD, [f"{run_directory}/helper.lock: another knime-root-helper is running; it is left alone"])
    listener, gate = accounts.user_ids(config.socket.listener_user), accounts.user_ids(config.socket.gate_user)
    if listener is None or gate is None:
        _leave(_HOST, ["an account was removed in this very moment"])
    gateway = Gateway(config.socket.path, listener, gate)  # before anything else is in this process's memory
    audit = AuditLog(
        config.audit.path, rotate_size=config.audit.rotate_size, keep_days=config.audit.keep_days,
        adm=accounts.group_id("adm") or 0, host=os.uname().nodename,
    )  # fmt: skip
    audit.record_end(Event(event="helper_started", pid=os.getpid()))
    if not systemd_is_there():
        _log.warning("no systemd: executors have no scopes; of executor.limits only nofile and core hold")
    loop = Loop()
    state = os.environ.get("STATE_DIRECTORY", "/var/lib/knime-peruser")
    supervisor = Supervisor(config, loop, audit, (os.path.join(run_directory, "executors"), state))
    Server(supervisor, loop, gateway).run()
    audit.record_end(Event(event="helper_stopped", pid=os.getpid()))


def _explain(user: str, config: HelperConfig) -> int:
    """Print every decision of a start, without starting anything."""
    users = config.users
    os_user = os_user_of(user, users.map, lowercase=users.lowercase, qualified=users.qualified_names)
    found: dict[str, object] = {"user": user, "os_user": os_user, "decision": "refused", "reason": "invalid_name"}
    if os_user is not None:
        name = directory_name(user, os_user, config.workspace.names)
        try:
            account, reason = accounts.decide(os_user, config)
            absent = [group for group in users.deny_groups if accounts.group_id(group) is None]
            decision = "refused" if reason else "would_start"
        except Undecided as error:
            account, reason, absent, decision = None, None, [], f"failed: {error}"
        found |= {
            "decision": decision,
            "reason": reason,
            "account": asdict(account) if account else None,
            "deny_groups_absent": absent,
            "workspace": os.path.join(config.executor.workspaces, name),
            "temp": os.path.join(config.executor.temp, name),
            "scope": unit_name(name),
        }
    print(json.dumps(found, indent=2))  # noqa: T201  the command's output
    return 0 if found["decision"] == "would_start" else 1


def _host_faults(config: HelperConfig) -> list[str]:
    # Whoever hangs, it is never short of one: 128 are for sockets, files, and what is opened for a moment.
    needed = max(DESCRIPTORS, config.limits.max_executors * _DESCRIPTORS_A_START + 128)
    most = allow_descriptors(needed)
    few = f"limits.max_executors: {needed} descriptors are needed, {most} allowed: set LimitNOFILE={needed} in the unit"
    names = {"socket.listener_user": config.socket.listener_user, "socket.gate_user": config.socket.gate_user}
    return [few] * (needed > most) + [
        f"{key}: {name}: an account of its own, not root's, is expected: systemd-sysusers makes it"
        for key, name in names.items()
        if 0 in (accounts.user_ids(name) or (0,))
    ]


def _leave(status: int, faults: list[str]) -> NoReturn:
    sys.stderr.write("".join(f"{fault}\n" for fault in faults))
    say(f"STATUS={'; '.join(faults)[:1000]}")  # journald often does not know any more whose line that was
    sys.exit(status)


if __name__ == "__main__":
    main()
