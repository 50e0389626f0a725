"""Questions about the directories of users: what the file system can do, whose they are, and how much room there is."""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from broker_listener.operator.checks.finding import (
    Finding,
    Inputs,
    Question,
    fault,
    not_asked,
    ok,
    open_to_others,
    warning,
)

LOW_PER_CENT: Final = 10
MAX_NAMED: Final = 5
MAX_DIRECTORIES: Final = 2000


def parents(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether the directories above users' own are root's, and writable by nobody else."""
    for key, path in _trees(inputs).items():
        subject = f"workspaces.{key}"
        directory = inputs.at(path)
        if not directory.is_dir():
            yield fault(subject, f"{path} is not there", f"install -d -m 0755 -o root -g root {path}")
        elif open_to_others(status := directory.stat()):
            seen = (
                f"{path}: uid {status.st_uid}, mode {status.st_mode & 0o7777:04o}: others could put a directory there"
            )
            yield fault(subject, seen, f"chown root:root {path} && chmod 0755 {path}")
        elif not status.st_mode & stat.S_IXOTH:
            yield fault(
                subject, f"{path}: mode {status.st_mode & 0o7777:04o}: users cannot enter", f"chmod 0755 {path}"
            )
        else:
            yield ok(subject, f"{path} is root's and writable by nobody else")


def acl(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether the file system keeps POSIX ACLs."""
    for key, path in _trees(inputs).items():
        directory = inputs.at(path)
        if directory.is_dir():
            if has_acl(directory):
                yield ok(f"{key}.acl", f"{path} keeps ACLs")
            else:
                advice = "mount it with acl, or use ext4, xfs or btrfs; every start fails with prepare_failed"
                yield fault(f"{key}.acl", f"the file system of {path} has no POSIX ACLs", advice)


def room(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether there is room, and whether there are inodes."""
    trees = {**_trees(inputs), "audit": str(Path(inputs.configuration.helper.audit.path).parent)}
    for key, path in trees.items():
        if not inputs.at(path).is_dir():
            continue
        seen = os.statvfs(inputs.at(path))
        space = 100 * seen.f_bavail // max(seen.f_blocks, 1)
        inodes = 100 * seen.f_favail // seen.f_files if seen.f_files else 100
        if min(space, inodes) < LOW_PER_CENT:
            advice = "make room; without any, no executor is started (an audit record must be written first)"
            yield warning(f"{key}.room", f"{path}: {space} % of space and {inodes} % of inodes are free", advice)
        else:
            yield ok(f"{key}.room", f"{path}: {space} % of space and {inodes} % of inodes are free")


def owners(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether every workspace belongs to the account whose name it bears."""
    subject, path = "workspaces.owners", inputs.configuration.helper.executor.workspaces
    if not (directory := inputs.at(path)).is_dir():
        return
    names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))[:MAX_DIRECTORIES]
    if (uids := _uids(inputs, names)) is None:
        yield not_asked(subject, "the name service does not answer in time", "time getent passwd NAME")
        return
    strange = [found for name in names if (found := _stranger(directory / name, path, uids))]
    if not strange:
        yield ok(subject, f"{len(names)} workspaces, each its own account's")
        return
    more = f"; {len(strange) - MAX_NAMED} more" if len(strange) > MAX_NAMED else ""
    advice = "; ".join(cure for _, cure in strange[:MAX_NAMED])
    yield warning(subject, "; ".join(seen for seen, _ in strange[:MAX_NAMED]) + more, advice)


def has_acl(directory: Path) -> bool:
    """Say whether a directory's file system keeps POSIX ACLs."""
    try:
        os.getxattr(directory, "system.posix_acl_default")
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def _trees(inputs: Inputs) -> dict[str, str]:
    executor = inputs.configuration.helper.executor
    return {"workspaces": executor.workspaces, "temp": executor.temp}


def _uids(inputs: Inputs, names: list[str]) -> dict[str, int] | None:
    """Give the uid of each workspace's account that there is; None where the name service does not answer in time.

    Asked in a process of its own: a directory service that hangs would hold this one for minutes.
    """
    if not (accounts := {_account(name) for name in names}):
        return {}  # without a name getent would list everybody
    ran = inputs.run(["getent", "passwd", "--", *sorted(accounts)])
    if ran.status is None:
        return None
    lines = [line.split(":") for line in ran.output.splitlines()]
    return {line[0]: int(line[2]) for line in lines if len(line) > 2 and line[0] in accounts and line[2].isdecimal()}


def _account(name: str) -> str:
    return name.partition("+")[0]


def _stranger(workspace: Path, parent: str, uids: Mapping[str, int]) -> tuple[str, str] | None:
    """Say what is wrong with a workspace and what to do, None where nothing is."""
    status, account = workspace.lstat(), _account(workspace.name)
    path = f"{parent}/{workspace.name}"
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is no directory", f"move {path} away"
    if (uid := uids.get(account)) is None:
        if workspace.name.endswith("_temp"):
            return f"{path} was the predecessor's temporary directory", f"remove {path} when nobody misses it"
        return f"{path} has no account: nobody is called {account}", f"keep or remove {path}; it harms nobody"
    if status.st_uid != uid:
        seen = f"{path} belongs to uid {status.st_uid}, {account} is {uid}: no executor starts (workspace_conflict)"
        return seen, f"if it is theirs: chown -R {account} {path}"
    return None


QUESTIONS: Final[tuple[Question, ...]] = (parents, acl, room, owners)
