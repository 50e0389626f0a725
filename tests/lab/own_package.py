"""The package of knime-peruser, built for a machine: of this checkout, or of a release that it was before.

The version is the builder's choice, so that one tree gives a lower and a higher one.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
NAME: Final = "knime-peruser"
LOWER: Final = "0.0.1-1"
"""Lower than any version that was ever released."""


def built(version: str, root: Path, source: Path = CHECKOUT) -> str:
    """Build the package of a tree; give its path below a machine's file system."""
    command = [sys.executable, str(source / "systemd/package"), "deb", "--version", version, "--output", f"{root}/root"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return f"/root/{Path(done.stdout.strip()).name}"


def last_releases() -> list[str]:
    """Give the tag of the last release of this checkout, or nothing where there is none yet, or no git."""
    if not (CHECKOUT / ".git").exists():
        return []
    done = subprocess.run([*_GIT, "tag", "--sort=version:refname"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1:]


def unpacked(release: str, directory: Path) -> Path:
    """Lay out the tree of a release as it was; give where."""
    archive = subprocess.run([*_GIT, "archive", release], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    return directory


_GIT: Final = ("git", "-C", str(CHECKOUT), "-c", f"safe.directory={CHECKOUT}")
