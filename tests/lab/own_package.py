"""The package of knime-peruser, built for a machine: of this checkout, or of a release that it was before.

The version is the builder's choice, so that one tree gives a lower and a higher one. Which commit a release was stands
in CHANGELOG.md, below its heading, and nowhere else.
"""

import importlib.util
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

CHECKOUT: Final = Path(__file__).resolve().parents[2]
NAME: Final = "knime-peruser"
LOWER: Final = "0.0.1-1"
"""Lower than any version that was ever released."""


def built(version: str, root: Path, source: Path = CHECKOUT) -> str:
    """Build the package of a tree; give its path below a machine's file system."""
    command = [sys.executable, str(source / "systemd/package"), "deb", "--version", version, "--output", f"{root}/root"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return f"/root/{Path(done.stdout.strip()).name}"


def script(name: str) -> ModuleType:
    """Return a script of systemd/ as a module."""
    loader = SourceFileLoader(f"systemd_{name}", str(CHECKOUT / "systemd" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    if spec is None:
        raise ImportError(loader.path)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def version() -> str:
    """Return the version that a package of this checkout has where nobody names another."""
    return str(script("package").default_version())


class Release(NamedTuple):
    """A version of CHANGELOG.md, and the commit that it was cut from."""

    version: str
    commit: str


class ReleaseMissingError(Exception):
    """The tree of a release cannot be had from this checkout; the text says why and what to do."""


def last_release(checkout: Path = CHECKOUT) -> Release:
    """Return the newest version of CHANGELOG.md that has a date; its commit stands below the heading."""
    changelog = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(r"^## \[([0-9.]+)\] - [0-9-]+\n\nCommit `([0-9a-f]{40})`\.$", changelog, re.MULTILINE)
    if released is None:
        raise ReleaseMissingError("CHANGELOG.md names no released version with its commit")
    return Release(*released.groups())


def unpacked(release: Release, directory: Path, checkout: Path = CHECKOUT) -> Path:
    """Lay out the tree of a release as it was; return where.

    Raises:
        ReleaseMissingError: git does not have the commit.
    """
    git = ["git", "-C", str(checkout), "-c", f"safe.directory={checkout}"]
    try:
        archive = subprocess.run([*git, "archive", release.commit], capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise ReleaseMissingError(f"{release.version} cannot be unpacked: git is not installed") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()
        advice = "a shallow clone lacks it: git fetch --unshallow"
        raise ReleaseMissingError(
            f"commit {release.commit} of {release.version} is not in {checkout}: {reason}; {advice}"
        ) from None
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    return directory
