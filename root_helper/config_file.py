"""helper.toml and the executors' broker URL, read from where only root can have written them, or refused.

It trusts a file that only root can have written, in directories that only root can change; no environment variable
overrides a key. The executors' broker URL is read by the worker alone, and no fault ever quotes it.
"""

import os
import re
import tomllib
from typing import Final

from protocol.settings import SettingsError, settings
from root_helper.config import HelperConfig
from root_helper.config_rules import rule_faults
from root_helper.pam import SERVICE_FILE
from root_helper.trusted_files import (
    opened_root_owned,
    root_owned_text,
    trusted_directory_faults,
    trusted_program_faults,
)

MSGQ_FILE: Final = "/etc/knime-peruser/executor-msgq"
"""Where the executors' broker URL stands if neither msgq_file nor systemd's credential says otherwise."""
_LOG_OF_UBUNTU: Final = "/var/log: mode 0775 "  # its group syslog could exchange the log's directory: SECURITY.md
_MSGQ: Final = re.compile(r"amqps?://[!-+\--~]+(?:,amqps?://[!-+\--~]+)*", re.ASCII)


def load(path: str) -> HelperConfig:
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


def config_faults(config: HelperConfig) -> list[str]:
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
    found = trusted_directory_faults(os.path.dirname(config.audit.path))
    faults += [f"audit.path: {fault}" for fault in found if not fault.startswith(_LOG_OF_UBUNTU)]
    faults += [f"executor.home: {fault}" for fault in trusted_program_faults(os.path.join(executor.home, "knime"))]
    if not os.path.exists(SERVICE_FILE):
        faults.append(f"{SERVICE_FILE}: is missing, PAM would ask the stack `other`: install systemd/knime-peruser.pam")
    msgq = _msgq_path(config)
    try:
        with opened_root_owned(msgq, others_may_read=False) as descriptor:
            if os.fstat(descriptor).st_size < len("amqp://h"):  # the unit's "-": systemd found no file
                why = f"write it into {MSGQ_FILE}, root's and mode 0600, and restart the helper"
                faults.append(f"executor.msgq_file: {msgq}: there is no broker URL in it: {why}")
    except SettingsError as error:
        faults += [f"executor.msgq_file: {fault}" for fault in error.faults]
    return faults


def read_msgq(config: HelperConfig) -> str:
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


def _msgq_path(config: HelperConfig) -> str:
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")  # set by systemd alone, systemd.exec(5)
    credential = os.path.join(credentials, "executor-msgq") if credentials else ""
    return config.executor.msgq_file or (credential if os.path.lexists(credential) else MSGQ_FILE)
