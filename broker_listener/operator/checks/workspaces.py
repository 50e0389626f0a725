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
    Level,
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
    """Ask whether every workspace and temp directory belongs to the account whose name it bears."""
    for key, path in _trees(inputs).items():
        if inputs.at(path).is_dir():
            yield from _owners(inputs, f"{key}.owners", path)


def _owners(inputs: Inputs, subject: str, path: str) -> Iterator[Finding]:
    directory = inputs.at(path)
    names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))[:MAX_DIRECTORIES]
    accounts = _accounts(inputs, {_account(name) for name in names})
    owners = {os.lstat(directory / name).st_uid for name in names}
    others = None if accounts is None else _accounts(inputs, {str(uid) for uid in owners - {*accounts.values()}})
    if accounts is None or others is None:
        yield not_asked(subject, "the name service does not answer in time", "time getent passwd NAME")
        return
    holders = {uid: name for name, uid in {**others, **accounts}.items()}
    strange = [found for name in names if (found := _stranger(directory / name, path, accounts, holders))]
    if not strange:
        yield ok(subject, f"{path}: {len(names)} directories, each its own account's")
        return
    strange.sort(key=lambda one: one.level is not Level.FAULT)
    more = f"; {len(strange) - MAX_NAMED} more" if len(strange) > MAX_NAMED else ""
    seen = "; ".join(one.seen for one in strange[:MAX_NAMED]) + more
    advice = "; ".join(one.advice for one in strange[:MAX_NAMED])
    if strange[0].level is Level.FAULT:
        yield fault(subject, seen, advice)
    else:
        yield warning(subject, seen, advice)


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


def _accounts(inputs: Inputs, keys: set[str]) -> dict[str, int] | None:
    """Return the uids of accounts by name, asked for by name or uid; None if the name service does not answer in time.

    Asked in a process of its own: a directory service that hangs would hold this one for minutes.
    """
    if not keys:
        return {}  # without a name getent would list everybody
    ran = inputs.run(["getent", "passwd", "--", *sorted(keys)])
    if ran.status is None:
        return None
    lines = [line.split(":") for line in ran.output.splitlines()]
    return {
        line[0]: int(line[2]) for line in lines if len(line) > 2 and line[2].isdecimal() and keys & {line[0], line[2]}
    }


def _account(name: str) -> str:
    return name.partition("+")[0]


def _stranger(directory: Path, parent: str, uids: Mapping[str, int], holders: Mapping[int, str]) -> Finding | None:
    """Return what is wrong with a directory and what to do, None if nothing is.

    ``holders`` are the accounts that have the uids which own something here.
    """
    status, account = directory.lstat(), _account(directory.name)
    path, uid = f"{parent}/{directory.name}", uids.get(account)
    if not stat.S_ISDIR(status.st_mode):
        return _found(Level.WARNING, f"{path} is no directory", f"move {path} away")
    if uid == status.st_uid:
        return None
    holder = holders.get(status.st_uid)
    if uid is not None:
        seen = f"{path} belongs to {holder or 'nobody'} (uid {status.st_uid}), {account} is {uid}: no executor starts"
        return _found(Level.WARNING, f"{seen} (workspace_conflict)", f"if it is theirs: chown -R {account} {path}")
    return _without_account(path, account, status.st_uid, holder)


def _without_account(path: str, account: str, uid: int, holder: str | None) -> Finding:
    """Return what becomes of a directory whose account is gone: who has its uid has all that is in it."""
    if uid == 0:
        return _found(Level.WARNING, f"{path}: nobody is called {account}; it is root's", f"keep or remove {path}")
    if holder is not None and account != f"{holder}_temp":
        seen = f"{path}: nobody is called {account}, and {holder} has uid {uid} now: all in it is {holder}'s"
        return _found(Level.FAULT, seen, f"chown -hR root:root {path}; then keep or remove it")
    if account.endswith("_temp"):
        seen = f"{path} was the predecessor's temporary directory"
        return _found(Level.WARNING, seen, f"remove {path} when nobody misses it")
    seen = f"{path}: nobody is called {account}; the next account with uid {uid} gets all in it"
    return _found(Level.WARNING, seen, f"chown -hR root:root {path}, or remove it")


def _found(level: Level, seen: str, advice: str) -> Finding:
    return Finding(level, "", seen, advice)


QUESTIONS: Final[tuple[Question, ...]] = (parents, acl, room, owners)
