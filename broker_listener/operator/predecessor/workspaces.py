"""What the predecessor's directories need before the helper takes them: as commands for root, none of which is run.

The directories are looked at and never changed; names in them come from whoever could make a directory there, so each
is quoted for the shell, and one that is no user name is left to a person.
"""

import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from broker_listener.operator.predecessor.configuration import Predecessor
from broker_listener.operator.predecessor.counterpart import temp_of
from protocol.names import parse_user_name

UNITS: Final = {
    "knime-executor-per-user.service": "the predecessor and its executors end",
    "knime-executor.service": "an executor without a reservation takes anybody's jobs",
}
UNIT_DIRECTORIES: Final = tuple(f"{place}/systemd/system" for place in ("/etc", "/run", "/usr/local/lib", "/usr/lib"))


def names_of(old: Predecessor) -> list[str]:
    """Give the names of the old workspaces."""
    try:
        return sorted(entry.name for entry in os.scandir(old.knime_workspace_parent_folder) if _is_directory(entry))
    except OSError:
        return []


def commands(old: Predecessor, old_file: Path) -> Iterator[tuple[str, str]]:
    """Give what root should run, and why, in order; ``old_file`` is where the old configuration was read."""
    home, workspaces = (os.path.normpath(path) for path in (old.knime_home, old.knime_workspace_parent_folder))
    for unit, why in UNITS.items():
        if any(Path(directory, unit).exists() for directory in UNIT_DIRECTORIES):
            yield f"systemctl disable --now {unit}", why
    installed = Path(home, "knime_executor_per_user_starter.config")
    for file in dict.fromkeys(path for path in (installed, old_file.absolute()) if path.exists()):
        yield f"chmod 0600 {shlex.quote(str(file))}", "it holds a password; remove it when you will not move back"
    yield from _trusted(home)
    quoted = shlex.quote(home)
    yield f"chown -R root:root {quoted} && chmod -R go-w {quoted}", "what lies there is run by every user"
    yield from _trusted(workspaces)
    yield from _opened(Path(workspaces))
    yield f"install -d -m 0755 -o root -g root {shlex.quote(temp_of(workspaces))}", "temporary directories go there"
    for name in names_of(old):
        yield from _workspace(Path(workspaces, name))


def _trusted(path: str) -> Iterator[tuple[str, str]]:
    """Look at every directory above: the helper believes no path that somebody else could change."""
    for directory in reversed(Path(path).parents):
        yield from _opened(directory)


def _opened(directory: Path) -> Iterator[tuple[str, str]]:
    try:
        status = directory.stat()
    except OSError:
        return
    quoted, mode = shlex.quote(str(directory)), f"mode {stat.S_IMODE(status.st_mode):04o} lets others in"
    if status.st_mode & stat.S_ISVTX and status.st_mode & 0o002:  # as /tmp is: everybody's, and to stay so
        yield f"# {quoted}", f"{mode}, and many need it so: move what is below elsewhere, and name that in helper.toml"
    elif status.st_uid != 0 or status.st_mode & 0o022:
        yield f"chown root:root {quoted} && chmod 0755 {quoted}", mode


def _workspace(path: Path) -> Iterator[tuple[str, str]]:
    name, quoted = path.name, shlex.quote(str(path))
    account = _uid_of(name)
    if account is None:
        if name.endswith("_temp") and _uid_of(name.removesuffix("_temp")) is not None:
            yield f"rm -r {quoted}", "was the predecessor's temporary directory; when nobody misses it"
        else:
            yield f"# {quoted}", "belongs to nobody whom the name service knows; it harms nobody"
    elif path.lstat().st_uid != account:
        yield f"chown -R {shlex.quote(name)} {quoted}", f"belongs to uid {path.lstat().st_uid}; if it is {name}'s"


def _uid_of(name: str) -> int | None:
    if parse_user_name(name, qualified=True) is None:
        return None
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
