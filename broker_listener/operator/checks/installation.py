"""Questions about the KNIME installation: whose it is, and whether what lies in it is what executors load.

What lies there is run by every user, so it must be root's, and writable by nobody else.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
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

MAX_SECONDS: Final = 1.5
"""Spent on looking at every file of the installation; one of 100,000 files takes half a second."""
_EXECUTABLE: Final = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


def owner(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether every file is root's, and writable by root alone."""
    subject, home = "installation.owner", inputs.configuration.helper.executor.home
    seen, deadline = 0, monotonic() + MAX_SECONDS
    for path in _everything(inputs.at(home)):
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode) and open_to_others(status):
            what = f"{path}: uid {status.st_uid}, mode {status.st_mode & 0o7777:04o}"
            yield fault(subject, what, f"chown -R root:root {home} && chmod -R go-w {home}")
            return
        seen += 1
        if monotonic() > deadline:
            yield ok(subject, f"root's, as far as {seen} files tell; the rest was not looked at, it would take long")
            return
    if seen:
        yield ok(subject, f"{home} and {seen - 1} files below it are root's and writable by nobody else")


def program(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether there is a program ``knime`` that everybody may execute."""
    subject, home = "installation.program", inputs.configuration.helper.executor.home
    path = inputs.at(home) / "knime"
    if not path.is_file():
        yield fault(subject, f"{path} is not there", "executor.home in helper.toml must name KNIME's installation")
    elif path.stat().st_mode & _EXECUTABLE != _EXECUTABLE:
        yield fault(subject, f"{path} may not be executed by everybody", f"chmod a+rx {home}/knime")
    else:
        yield ok(subject, f"{path}")


def dropins(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether every user can read the plug-ins in ``dropins``, and nobody but root write them."""
    subject, home = "installation.dropins", inputs.configuration.helper.executor.home
    unreadable = [path for path in _dropins(inputs) if not _readable(path)]
    foreign = [path for path in _dropins(inputs) if open_to_others(path.stat())]
    if unreadable:
        yield fault(subject, f"{unreadable[0]} cannot be read by every user", f"chmod -R a+rX {home}/dropins")
    if foreign:
        seen = f"{foreign[0]} can be changed by others than root: they would run as every user"
        yield fault(subject, seen, f"chown -R root:root {home}/dropins && chmod -R go-w {home}/dropins")
    if not unreadable and not foreign:
        yield ok(subject, f"{home}/dropins is readable by every user and writable by root alone")


def cleaned(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether somebody ran ``knime -clean`` after the newest plug-in came."""
    subject, home = "installation.clean", inputs.configuration.helper.executor.home
    configuration = inputs.at(home) / "configuration"
    traces = (
        configuration / "org.eclipse.equinox.simpleconfigurator" / "bundles.info",
        *sorted((configuration / "org.eclipse.osgi").glob("framework.info.*")),
    )
    last = max((path.stat().st_mtime for path in traces if path.exists()), default=None)
    newest = max(_dropins(inputs), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        yield ok(subject, "there are no dropins")
    elif last is None:
        yield not_asked(subject, f"nothing below {home}/configuration tells when it was cleaned last")
    elif newest.stat().st_mtime > last:
        yield warning(
            subject,
            f"{newest} is newer than the last knime -clean: executors may not load it",
            f"as an account that owns the installation for as long as that takes: chown -R knime {home} && runuser -u"
            f" knime -- {home}/knime -clean -application org.knime.product.KNIME_BATCH_APPLICATION; chown -R root:root"
            f" {home} && chmod -R go-w {home}",
        )
    else:
        yield ok(subject, "cleaned after the newest plug-in in dropins came")


def autoshutdown(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether anything ends an executor that nobody uses."""
    subject, home = "installation.autoshutdown", inputs.configuration.helper.executor.home
    jars = [path.name for path in _dropins(inputs) if path.name.startswith(AUTOSHUTDOWN) and path.suffix == ".jar"]
    idle_after = inputs.configuration.helper.limits.idle_after
    if jars or idle_after:
        yield ok(subject, ", ".join(jars) or f"the helper ends executors that are idle for {idle_after:.0f} s")
    else:
        advice = f"put {AUTOSHUTDOWN}_VERSION.jar, which KNIME's support gives, into {home}/dropins; or stop executors"
        yield warning(subject, "executors never end by themselves and keep core tokens and memory", advice)


def _everything(home: Path) -> Iterator[Path]:
    if home.exists():
        yield home
    for directory, directories, files in os.walk(home):
        for name in (*directories, *files):
            yield Path(directory, name)


def _dropins(inputs: Inputs) -> list[Path]:
    directory = inputs.at(inputs.configuration.helper.executor.home) / "dropins"
    return sorted(path for path in directory.rglob("*") if path.exists()) if directory.is_dir() else []


def _readable(path: Path) -> bool:
    mode = path.stat().st_mode
    return bool(mode & stat.S_IROTH) and (not path.is_dir() or bool(mode & stat.S_IXOTH))


AUTOSHUTDOWN: Final = "com.knime.enterprise.executor.autoshutdown"
QUESTIONS: Final[tuple[Question, ...]] = (owner, program, dropins, cleaned, autoshutdown)
