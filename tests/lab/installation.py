"""What an administrator installs, in one directory of its own: code, simulated KNIME, configuration, credentials.

The code is copied as a package would lay it: a private directory of root's, launchers with ``python3 -I``. All paths
of both daemons are below the directory, which must be where only root can write on the way from ``/``: the helper
refuses anything else. Nothing is left outside of it.
"""

import compileall
import json
import os
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.lab.accounts import LISTENER, OsUser
from tests.lab.broker_node import BrokerNode
from tests.lab.toml import dumps, merged

CHECKOUT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("protocol", "root_helper", "broker_listener")
COMMANDS: Final = {
    "knime-root-helper": "root_helper",
    "knime-broker-listener": "broker_listener",
    "knime-peruser": "broker_listener.operator",
}


class Installation:
    """One installation. ``python`` runs the daemons; any user must be able to execute it."""

    def __init__(self, root: Path, broker: BrokerNode, vhost: str = "/", python: str = sys.executable) -> None:
        self.root, self.broker, self.vhost, self.python = root, broker, vhost, python
        self.knime_home = root / "opt-knime"
        self.workspaces = root / "workspaces"
        self.temp = root / "temp"
        self.homes = root / "home"
        self.run = root / "run"
        self.listener_run = root / "run-listener"
        self.logs = root / "log"
        self.etc = root / "etc"
        self.state = root / "state"
        self.listener_state = root / "state-listener"
        self.helper_toml = self.etc / "helper.toml"
        self.listener_toml = self.etc / "listener.toml"
        self.socket = self.run / "helper.sock"
        self.operator_socket = self.run / "operator.sock"
        self.status_socket = self.listener_run / "status.sock"
        self.audit_log = self.logs / "audit.jsonl"

    def create(self) -> None:
        """Lay everything out; both daemons can be started afterwards."""
        for directory in (self.root, self.knime_home, self.etc, self.state, self.logs, self.homes):
            _root_directory(directory)
        for directory in (self.workspaces, self.temp):
            _root_directory(directory, 0o711)
        _root_directory(self.run, 0o750, group=LISTENER)
        _root_directory(self.listener_run)
        shutil.chown(self.listener_run, LISTENER, LISTENER)
        _root_directory(self.listener_state, 0o700)
        shutil.chown(self.listener_state, LISTENER, LISTENER)
        self._install_code()
        self._install_knime()
        self._write_credentials()
        self.write_helper_toml()
        self.write_listener_toml()

    def command(self, name: str) -> list[str]:
        """Give the command line of ``knime-root-helper`` or ``knime-broker-listener`` with its configuration."""
        toml = {"knime-root-helper": self.helper_toml, "knime-broker-listener": self.listener_toml}[name]
        return [str(self.root / "bin" / name), "--config", str(toml)]

    def operator(self, *words: str) -> list[str]:
        """Give a command line of ``knime-peruser`` with its configuration."""
        return [str(self.root / "bin/knime-peruser"), "--config-dir", str(self.etc), *words]

    def credentials(self, daemon: str) -> Path:
        """Give the directory that CREDENTIALS_DIRECTORY names for a daemon."""
        return self.root / "credentials" / daemon

    def workspace(self, user: OsUser | str) -> Path:
        """Give the path of a user's workspace."""
        return self.workspaces / (user if isinstance(user, str) else user.name)

    def write_helper_toml(self, **changes: Mapping[str, object]) -> None:
        """Write helper.toml for this directory, with changes: ``limits={"stop_grace": 1.0}``."""
        base: dict[str, object] = {
            "socket": {"path": str(self.socket), "operator_path": str(self.operator_socket)},
            "executor": {
                "home": str(self.knime_home),
                "workspaces": str(self.workspaces),
                "temp": str(self.temp),
            },
            "users": {"home_roots": [str(self.homes)]},
            "audit": {"path": str(self.audit_log)},
        }
        self._write(self.helper_toml, dumps(merged(base, changes)))

    def write_listener_toml(self, **changes: Mapping[str, object]) -> None:
        """Write listener.toml for this directory and broker, with changes."""
        url = self.broker.listener.at(self.broker.port, self.vhost, with_password=False)
        base: dict[str, object] = {
            "broker": {"urls": [url]},
            "helper": {"socket": str(self.socket)},
            "metrics": {"listen": ""},
        }
        self._write(self.listener_toml, dumps(merged(base, changes)))

    def configure_knime(self, **settings: object) -> None:
        """Say how the simulated executors behave from their next start on (``simulated_knime/knime`` has the keys)."""
        spec = find_spec("pika")
        found = {} if spec is None or spec.origin is None else {"python_path": str(Path(spec.origin).parents[1])}
        self._write(self.knime_home / "simulated.json", json.dumps({**found, **settings}))

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _install_code(self) -> None:
        library = self.root / "lib"
        _root_directory(library)
        _root_directory(self.root / "bin")
        for package in PACKAGES:
            shutil.copytree(CHECKOUT / package, library / package, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (library, *library.rglob("*")):
            os.chown(path, 0, 0)
            path.chmod(0o755 if path.is_dir() else 0o644)
        compileall.compile_dir(library, quiet=1)
        for name, package in COMMANDS.items():
            launcher = _LAUNCHER.format(python=self.python, library=str(library), package=package)
            self._write(self.root / "bin" / name, launcher, mode=0o755)

    def _install_knime(self) -> None:
        program = self.knime_home / "knime"
        self._write(program, (CHECKOUT / "tests/simulated_knime/knime").read_text(encoding="utf-8"), mode=0o755)
        self.configure_knime()

    def _write_credentials(self) -> None:
        _root_directory(self.root / "credentials")
        for daemon, owner in (("helper", "root"), ("listener", LISTENER)):
            directory = self.credentials(daemon)
            directory.mkdir(mode=0o700)
            shutil.chown(directory, owner, owner)
        executors = self.broker.executors.at(self.broker.port, self.vhost)
        self._write(self.credentials("helper") / "executor-msgq", executors + "\n", mode=0o400)
        password = self.credentials("listener") / "broker-password"
        self._write(password, self.broker.listener.password, mode=0o400)
        shutil.chown(password, LISTENER, LISTENER)

    @staticmethod
    def _write(path: Path, text: str, mode: int = 0o644) -> None:
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(text, encoding="utf-8")
        new.chmod(mode)
        new.rename(path)


_LAUNCHER: Final = """\
#!{python} -I
import sys

sys.path.insert(0, {library!r})
from {package}.__main__ import main

sys.exit(main())
"""


def _root_directory(path: Path, mode: int = 0o755, group: str | int = 0) -> None:
    path.mkdir()
    path.chmod(mode)
    shutil.chown(path, 0, group)
