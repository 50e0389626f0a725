"""The virtual environments that tests run in, kept between runs below one directory outside of any home.

``locked`` holds what tests/requirements/all.txt pins, with hashes: the newest supported versions when it was made.
``distribution`` adds the pinned test tools to the distribution's own packages: the oldest supported versions.
``newest`` is what the registry has today, unpinned: for the night. The checkout is installed anew into each.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = Path("/var/cache/knime-peruser-tests")
REQUIREMENTS: Final = CHECKOUT / "tests/requirements"


class BuildError(Exception):
    """An environment could not be made; the text is what the failed command said."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One virtual environment: its name, how venv makes it and what pip installs into it."""

    name: str
    venv_options: tuple[str, ...]
    requirements: str

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return CACHE / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "bin/python"

    def build(self) -> None:
        """Make it if its requirements have changed, and install the checkout into it.

        Raises:
            BuildError: a command failed.
        """
        wanted = self._fingerprint()
        stamp = self.directory / "made-of"
        if not stamp.exists() or stamp.read_text(encoding="ascii") != wanted:
            print(f"building {self.directory}", flush=True)
            shutil.rmtree(self.directory, ignore_errors=True)
            CACHE.mkdir(parents=True, exist_ok=True)
            _run("/usr/bin/python3", "-m", "venv", *self.venv_options, self.directory)
            self._pip("--requirement", REQUIREMENTS / self.requirements)
            stamp.write_text(wanted, encoding="ascii")
        with tempfile.TemporaryDirectory() as copy:  # pip leaves build directories in what it installs from
            source = Path(copy) / "source"
            shutil.copytree(CHECKOUT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
            self._pip("--no-deps", "--no-build-isolation", "--force-reinstall", source)

    def versions(self) -> str:
        """Return the versions of Python and of the libraries that decide: ``Python 3.11.2, pika 1.4.4, ...``."""
        modules = "pika, zmq, psutil"
        show = f"import platform, {modules}; print(platform.python_version(), *(m.__version__ for m in ({modules})))"
        done = subprocess.run([self.python, "-c", show], capture_output=True, text=True, check=True)
        labels = ("Python", "pika", "pyzmq", "psutil")
        return ", ".join(f"{label} {version}" for label, version in zip(labels, done.stdout.split(), strict=True))

    def _pip(self, *arguments: str | Path) -> None:
        _run(self.directory / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *arguments)

    def _fingerprint(self) -> str:
        files = "".join(path.read_text(encoding="ascii") for path in sorted(REQUIREMENTS.iterdir()))
        return hashlib.sha256(repr((sys.version, self.venv_options, self.requirements, files)).encode()).hexdigest()


LOCKED: Final = Environment("locked", (), "all.txt")
DISTRIBUTION: Final = Environment("distribution", ("--system-site-packages",), "tools.txt")
NEWEST: Final = Environment("newest", (), "all.in")


def lock(names: Sequence[str] = ("tools", "unit", "all")) -> None:
    """Write tests/requirements/*.txt from the .in files: the newest versions, with hashes, for every platform.

    Raises:
        BuildError: uv, which does it, could not be installed or failed.
    """
    with tempfile.TemporaryDirectory() as place:
        _run("/usr/bin/python3", "-m", "venv", place)
        _run(f"{place}/bin/pip", "install", "--quiet", "uv")
        for name in names:
            options = ("--universal", "--generate-hashes", "--python-version=3.11", "--no-header", "--no-annotate")
            files = (f"--output-file={REQUIREMENTS / name}.txt", REQUIREMENTS / f"{name}.in")
            _run(f"{place}/bin/uv", "pip", "compile", "--quiet", "--upgrade", *options, *files)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
