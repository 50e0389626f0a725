"""Would this user get an executor? The helper itself is asked, so the answer is its own: ``--explain``."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from broker_listener.operator.checks.daemons import program
from broker_listener.operator.checks.finding import (
    Finding,
    Inputs,
    Question,
    fault,
    not_asked,
    ok,
    open_to_others,
)

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
    told = ("user", "os_user", "account", "workspace", "temp", "scope", "deny_groups_absent")
    facts = {key: said.get(key) for key in told}
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
    """Say of the home and the workspace what a start would meet."""
    account = said.get("account")
    if not isinstance(account, dict):
        return
    for key, path in (("home", account.get("home")), ("workspace", said.get("workspace")), ("temp", said.get("temp"))):
        subject, kind = f"account.{key}", "home_conflict" if key == "home" else "workspace_conflict"
        directory, whose = inputs.at(str(path)), str(account["name"])
        if not (directory.exists() or directory.is_symlink()):
            yield from (
                _missing_home(inputs, whose, Path(str(path))) if key == "home" else [_would_be_made(subject, path)]
            )
            continue
        status, uid = directory.lstat(), account["uid"]
        seen = f"{path}: uid {status.st_uid}, mode {status.st_mode & 0o7777:04o}"
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid:
            yield fault(
                subject, f"{seen}, is no directory of uid {uid}: {kind}", f"move it away, or chown {whose} {path}"
            )
        elif key == "home" and status.st_mode & 0o022:
            yield fault(subject, f"{seen}, others can write it: {kind}", f"chmod go-w {path}")
        elif key != "home" and directory.is_mount():
            yield fault(
                subject, f"{seen}, is a mount point: {kind}", f"mount the whole {Path(str(path)).parent}, not it"
            )
        else:
            yield ok(subject, f"{path} belongs to {whose}, mode {status.st_mode & 0o7777:04o}")


def _missing_home(inputs: Inputs, whose: str, home: Path) -> Iterator[Finding]:
    """Say whether the helper would make it: below a root of homes, in a directory that is root's alone."""
    subject, roots, parent = "account.home", inputs.configuration.helper.users.home_roots, home.parent
    seen = f"{home} is not there"
    if not any(parent.is_relative_to(root) for root in roots):
        advice = f"make it, or add {parent} to users.home_roots"
        yield fault(subject, f"{seen}, nor below users.home_roots ({', '.join(roots)}): home_conflict", advice)
    elif not inputs.at(parent).is_dir():
        yield fault(subject, f"{seen}, nor is {parent}: home_conflict", f"install -d -m 0755 -o root -g root {parent}")
    elif foreign := [path for path in (parent, *parent.parents) if open_to_others(inputs.at(path).stat())]:
        advice = f"chown root:root {foreign[0]} && chmod go-w {foreign[0]}; or make the home of {whose} yourself"
        yield fault(subject, f"{seen}, and {foreign[0]} can be changed by others than root: home_conflict", advice)
    else:
        yield _would_be_made(subject, home)


def _would_be_made(subject: str, path: object) -> Finding:
    return ok(subject, f"{path} is not there and would be made")


QUESTIONS: Final[tuple[Question, ...]] = (would_start,)
