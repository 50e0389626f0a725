"""What belongs to an installation, and where it goes: on a host by itself, or in a distribution's package.

It reads this checkout and changes nothing. Commands come from pyproject.toml's [project.scripts], so that there is one
list of them.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "root_helper", "broker_listener")
DAEMONS = ("knime-broker-listener", "knime-root-helper")
CONFIGURATION = ("helper.toml", "listener.toml")
SEARCH_PATH = 'sys.path += [place for place in site.getsitepackages() if not place.startswith("/usr/local/")]'
LAUNCHER = """\
#!/usr/bin/python3 -IS
# Nobody but root may have a say in what is imported here. -I: not the working directory, no PYTHON... variable, no
# directory of a user. -S: no .pth file and no sitecustomize; nothing below /usr/local but what this line names.
import site
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, "{code}")
{search_path}

from {module} import {function}

sys.exit({function}())
"""


class Places(NamedTuple):
    """Where what goes."""

    code: str
    sbin: str
    bin: str
    units: str
    sysusers: str
    tmpfiles: str
    man: str
    examples: str
    pam: str = "/etc/pam.d"
    configuration: str = "/etc/knime-peruser"


PACKAGE = Places(
    code="/usr/lib/knime-peruser",
    sbin="/usr/sbin",
    bin="/usr/bin",
    units="/usr/lib/systemd/system",
    sysusers="/usr/lib/sysusers.d",
    tmpfiles="/usr/lib/tmpfiles.d",
    man="/usr/share/man",
    examples="/usr/share/doc/knime-peruser/examples",
)
LOCAL = Places(  # not /etc: there an administrator's own unit or snippet of the same name takes precedence
    code="/usr/local/lib/knime-peruser",
    sbin="/usr/local/sbin",
    bin="/usr/local/bin",
    units="/usr/local/lib/systemd/system",
    sysusers="/usr/local/lib/sysusers.d",
    tmpfiles="/usr/local/lib/tmpfiles.d",
    man="/usr/local/share/man",
    examples="/usr/local/share/doc/knime-peruser/examples",
)


class Item(NamedTuple):
    """One file: where it goes, what is in it, its mode, and whether one that is there is the administrator's."""

    path: str
    content: bytes
    mode: int
    configuration: bool = False


def items(places: Places) -> Iterator[Item]:
    """Give all that belongs to an installation."""
    for package in PACKAGES:
        for file in sorted((SOURCE / package).rglob("*.py")):
            yield Item(f"{places.code}/{file.relative_to(SOURCE)}", file.read_bytes(), 0o644)
    with (SOURCE / "pyproject.toml").open("rb") as project:
        scripts = tomllib.load(project)["project"]["scripts"]
    for command, entry_point in scripts.items():
        module, function = entry_point.split(":")
        launcher = LAUNCHER.format(code=places.code, search_path=SEARCH_PATH, module=module, function=function)
        yield Item(f"{places.sbin if command in DAEMONS else places.bin}/{command}", launcher.encode(), 0o755)
    systemd = SOURCE / "systemd"
    for unit in sorted((*systemd.glob("*.service"), *systemd.glob("*.slice"))):
        text = unit.read_text(encoding="utf-8").replace("ExecStart=/usr/sbin/", f"ExecStart={places.sbin}/")
        yield Item(f"{places.units}/{unit.name}", text.encode(), 0o644)
    yield Item(f"{places.sysusers}/knime-peruser.conf", (systemd / "knime-peruser.sysusers").read_bytes(), 0o644)
    yield Item(f"{places.tmpfiles}/knime-peruser.conf", (systemd / "knime-peruser.tmpfiles").read_bytes(), 0o644)
    for page in sorted((systemd / "man").glob("*.[1-8]")):
        yield Item(f"{places.man}/man{page.suffix[1:]}/{page.name}", page.read_bytes(), 0o644)
    yield Item(f"{places.pam}/knime-peruser", (systemd / "knime-peruser.pam").read_bytes(), 0o644, configuration=True)
    for file in sorted(path for path in (SOURCE / "etc").rglob("*") if path.is_file()):
        name, content = file.relative_to(SOURCE / "etc").as_posix(), file.read_bytes()
        if name in CONFIGURATION:
            yield Item(f"{places.configuration}/{name}", content, 0o644, configuration=True)
        else:  # for other systems on the host; neither daemon reads it
            yield Item(f"{places.examples}/{name}", content, 0o644)


def directories_of_tmpfiles() -> list[str]:
    """Give the directories that systemd-tmpfiles makes for us."""
    text = (SOURCE / "systemd/knime-peruser.tmpfiles").read_text(encoding="utf-8")
    return [line.split()[1] for line in text.splitlines() if line.startswith("d ")]
