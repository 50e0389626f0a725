"""Questions about the two daemons: their configuration, credentials and sockets.

Both programs are asked to check themselves, so what they would refuse is said here in their own words.
"""

import grp
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from broker_listener.config import read_secret
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
from broker_listener.secret_text import NotOneLineError, doubt, one_line

_PLACES: Final = ("/usr/sbin", "/usr/local/sbin")


def configurations(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether both daemons take their configuration."""
    configuration = inputs.configuration
    daemons = {"knime-root-helper": configuration.helper_toml, "knime-broker-listener": configuration.listener_toml}
    for name, file in daemons.items():
        subject = f"daemons.{name}"
        if os.geteuid() != 0:
            yield not_asked(subject, f"only root can ask for {name} --check", "run this as root")
            continue
        # Where credentials lie beside the configuration, as installed: systemd passes on what stands there.
        environment = f"CREDENTIALS_DIRECTORY={configuration.directory}"
        ran = inputs.run(["/usr/bin/env", environment, program(name), "--config", str(file), "--check"])
        for line in ran.output.splitlines() if ran.status != 0 else ():
            yield fault(subject, line[:500], f"correct it, then {name} --config {file} --check")
        if ran.status == 0:
            yield ok(subject, f"{file} and what it names are as {name} wants them")


def credentials(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether both credentials are there, root's, and closed to everybody else."""
    configuration = inputs.configuration
    password_file, msgq_file = configuration.listener.broker.password_file, configuration.helper.executor.msgq_file
    yield from _credential(inputs, "broker-password", password_file, configuration.helper.socket.listener_user)
    yield from _credential(inputs, "executor-msgq", msgq_file, None)


def _credential(inputs: Inputs, name: str, configured: str, reader: str | None) -> Iterator[Finding]:
    """Look at one; where the configuration names a file of its own, ``reader`` may own it, or its group may read it."""
    subject, path = f"daemons.{name}", configured or str(inputs.configuration.directory / name)
    owners, groups = _ids(reader) if configured else ({0}, set())
    try:
        status = inputs.at(path).stat() if configured else inputs.at(path).lstat()
    except FileNotFoundError:
        yield fault(subject, f"{path} is not there", f"install -m 0600 /dev/null {path}, then write it")
        return
    except PermissionError:
        yield not_asked(subject, f"{path} is in a directory that this account may not look into", "run this as root")
        return
    closed = 0o037 if status.st_gid in groups else 0o077
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in owners or status.st_mode & closed:
        seen = f"{path}: uid {status.st_uid}, mode {status.st_mode & 0o7777:04o}: others can read a password"
        whose = f"{reader if configured and reader else 'root'}:root"
        yield fault(subject, seen, f"chown {whose} {path} && chmod 0600 {path}, and change the password")
    elif not status.st_size:
        yield fault(subject, f"{path} is empty", "write it, then restart both daemons")
    elif (found := _content(inputs, name, path)) is not None:
        yield found
    else:
        yield ok(subject, f"{path} is there, closed to others, and one line")


def _content(inputs: Inputs, name: str, path: str) -> Finding | None:
    """Return what is wrong with what a credential holds, nothing of it; None if nothing is, or it cannot be read."""
    subject, advice = f"daemons.{name}", f"write {path} anew, one line without blanks, then restart both daemons"
    try:
        secret = one_line(read_secret(inputs.at(path)))
    except NotOneLineError as error:
        return fault(subject, f"{path} {error}", advice)
    except PermissionError:
        return None
    if (said := doubt(secret)) is None:
        return None
    if name == "broker-password":
        return warning(subject, f"{path} {said}: is that meant?", advice)
    return fault(subject, f"{path} {said}, which no URL does", advice)


def files(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether nobody but root can change the configuration."""
    subject = "daemons.configuration"
    configuration = inputs.configuration
    paths = (configuration.directory, configuration.helper_toml, configuration.listener_toml)
    open_ones = [path for path in paths if open_to_others(inputs.at(path).stat())]
    for path in open_ones:
        yield fault(
            subject, f"{path} can be changed by others than root", f"chown root:root {path} && chmod go-w {path}"
        )
    if not open_ones:
        yield ok(subject, f"{configuration.directory} is root's")


def sockets(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether the helper's sockets are there, each for whom it is meant."""
    keys = inputs.configuration.helper.socket
    if inputs.configuration.listener.helper.socket != keys.path:
        seen = f"listener.toml asks at {inputs.configuration.listener.helper.socket}, the helper listens at {keys.path}"
        yield fault("daemons.socket", seen, "helper.socket and socket.path must be the same")
    for subject, path, mode, group in (
        ("daemons.helper_socket", keys.path, 0o660, keys.listener_user),
        ("daemons.operator_socket", keys.operator_path, 0o600, "root"),
    ):
        try:
            status = inputs.at(path).lstat()
        except PermissionError:
            yield not_asked(subject, f"{path} is where this account may not look", "run this as root")
            continue
        except OSError as error:
            yield fault(subject, f"{path}: {error.strerror}", "systemctl status knime-root-helper")
            continue
        seen = f"{path}: uid {status.st_uid}, group {_group(status.st_gid)}, mode {status.st_mode & 0o7777:04o}"
        right = status.st_uid == 0 and status.st_mode & 0o7777 == mode and _group(status.st_gid) == group
        if stat.S_ISSOCK(status.st_mode) and right:
            yield ok(subject, seen)
        else:
            yield fault(
                subject, f"{seen}; root, {group}, {mode:04o} are expected", "systemctl restart knime-root-helper"
            )


def helper(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether the helper answers, is root's, and starts executors."""
    subject, running = "daemons.helper", inputs.running
    if isinstance(running, str):
        if os.geteuid() == 0:
            yield fault(subject, f"no answer: {running}", "systemctl status knime-root-helper")
        else:
            yield not_asked(subject, "only root may ask the helper", "run this as root")
    elif running.uid != 0:
        seen = f"who answers on the operators' socket is uid {running.uid}, not root"
        yield fault(subject, seen, "somebody else listens there: find out who, restart knime-root-helper")
    elif running.draining:
        yield warning(subject, "the helper is draining: it starts no executor", "knime-peruser undrain")
    elif not running.free:
        advice = "limits.max_executors, or end some: knime-peruser stop USER"
        yield warning(subject, f"{len(running.pids)} executors run and there is room for no other", advice)
    else:
        yield ok(subject, f"{len(running.pids)} executors run, there is room for {running.free} more")


def program(name: str) -> str:
    """Give the path of a program of ours: beside this one, else where packages and systemd/install put it."""
    own = Path(sys.argv[0]).resolve().parent
    places = (own, own.parent / "sbin", *map(Path, _PLACES))
    return str(next((place / name for place in places if (place / name).is_file()), Path(_PLACES[0], name)))


def _ids(reader: str | None) -> tuple[set[int], set[int]]:
    """Give the uids that may own a credential, and the gids that may read it."""
    try:
        account = pwd.getpwnam(reader) if reader else None
    except KeyError:
        account = None
    return ({0}, set()) if account is None else ({0, account.pw_uid}, {account.pw_gid})


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


QUESTIONS: Final[tuple[Question, ...]] = (files, credentials, configurations, sockets, helper)
