"""Would this user get an executor? The helper itself is asked, so the answer is its own: ``--explain``."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from broker_listener.operator.checks.daemons import program
from broker_listener.operator.checks.finding import Finding, Inputs, Question, fault, not_asked, ok

CURES: Final = {
    "invalid_name": "rename the user in KNIME, or users.qualified_names for user@domain",
    "unknown_user": "getent passwd NAME; make the account, or add the KNIME user to users.map",
    "denied_user": "users.deny_users, users.deny_groups; or a name that the directory spells otherwise: users.map",
    "uid_out_of_range": "users.min_uid, users.max_uid; ids 0 and 61184 to 65535 never",
    "not_in_group": "add the user to a group of users.allow_groups",
    "account_expired": "give the account, or its password, a later end",
}


def would_start(inputs: Inputs) -> Iterator[Finding]:
    """Ask the helper what a start for the user of ``--user`` would decide."""
    if inputs.user is None:
        return
    subject = "account"
    if os.geteuid() != 0:
        yield not_asked(subject, "only root can ask the helper for its decisions", "run this as root")
        return
    configuration = inputs.configuration.helper_toml
    ran = inputs.run([program("knime-root-helper"), "--config", str(configuration), f"--explain={inputs.user}"])
    try:
        said = json.loads(ran.output)
    except ValueError:
        yield fault(subject, f"the helper does not explain: {ran.output.strip()[:300]}", "knime-root-helper --check")
        return
    facts = {key: said.get(key) for key in ("user", "os_user", "account", "workspace", "temp", "scope")}
    yield from _decision(subject, said)
    yield ok(f"{subject}.facts", json.dumps(facts))
    yield from _directories(inputs, said)


def _decision(subject: str, said: dict[str, object]) -> Iterator[Finding]:
    decision, reason = str(said.get("decision")), str(said.get("reason"))
    if decision == "would_start":
        yield ok(subject, f"{said['user']} would get an executor as {said['os_user']}")
    elif decision == "refused":
        yield fault(subject, f"{said['user']} is refused: {reason}; the jobs are parked", CURES.get(reason, "README"))
    else:
        yield fault(
            subject, f"{said['user']}: {decision}; the jobs are held", "getent passwd NAME; the directory service"
        )


def _directories(inputs: Inputs, said: dict[str, object]) -> Iterator[Finding]:
    """Say of the home and the workspace what a start would meet; a missing one is made."""
    account = said.get("account")
    if not isinstance(account, dict):
        return
    for key, path in (("home", account.get("home")), ("workspace", said.get("workspace")), ("temp", said.get("temp"))):
        subject, directory = f"account.{key}", inputs.at(str(path))
        status = directory.lstat() if _is_there(directory) else None
        if status is None:
            yield ok(subject, f"{path} is not there and would be made")
        elif status.st_uid != account["uid"] or not directory.is_dir() or directory.is_symlink():
            seen = f"{path} is no directory of uid {account['uid']}, it is uid {status.st_uid}'s"
            kind = "home_conflict" if key == "home" else "workspace_conflict"
            yield fault(subject, f"{seen}: {kind}", f"move it away, or chown {account['name']} {path}")
        else:
            yield ok(subject, f"{path} belongs to {account['name']}, mode {status.st_mode & 0o7777:04o}")


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


QUESTIONS: Final[tuple[Question, ...]] = (would_start,)
