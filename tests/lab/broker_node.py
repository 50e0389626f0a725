"""A RabbitMQ node of our own, beside any other: on loopback and free ports, stopped, killed and restarted at will.

Own node name, epmd, Erlang cookie, data, log, plug-ins and configuration, run as user rabbitmq; nothing of
/etc/rabbitmq or /var/lib/rabbitmq is read or written. Accounts have the least permissions that the contract names,
and passwords full of the characters that a URL must have escaped. No password is ever on a command line.
"""

import base64
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.lab.processes import ReadinessSocket, end, process_id, start
from tests.lab.vhosts import Vhosts

RABBITMQ: Final = Path("/usr/lib/rabbitmq/bin")
JOBS_EXCHANGE: Final = "knime-server2executorknime-jobs"
RESULTS_EXCHANGE: Final = "knime-executor2serverknime-jobs"
"""Ours: how the real executors answer is not known, and so they need no right on the default exchange here."""


@dataclass(frozen=True, slots=True)
class BrokerAccount:
    """An account of the broker and its permissions: configure, write, read."""

    name: str
    permissions: tuple[str, str, str]
    password: str

    def at(self, port: int, vhost: str, *, with_password: bool = True) -> str:
        """Give the account's URL, every part percent-encoded, as both pika and the Java client decode it."""
        password = f":{quote(self.password, safe='')}" if with_password else ""
        return f"amqp://{quote(self.name, safe='')}{password}@127.0.0.1:{port}/{quote(vhost, safe='')}"


class BrokerNode:
    """One private node. ``directory`` must not exist; only root may write beside it.

    One that stands ``beside`` another has that one's epmd, Erlang cookie and accounts, so that it can join it.
    """

    def __init__(self, directory: Path, beside: "BrokerNode | None" = None) -> None:
        self.directory = directory
        self.port, self._distribution, self._epmd_port, self._cli = _free_ports(4)
        self.name = f"kpr{self.port}@127.0.0.1"  # a name with an address needs no resolver
        self.server, self.listener, self.executors = broker_accounts()
        self._cookie = secrets.token_hex(20)
        self._beside = beside
        if beside is not None:
            self.server, self.listener, self.executors = beside.server, beside.listener, beside.executors
            self._epmd_port, self._cookie = beside._epmd_port, beside._cookie
        self.log = directory / "log" / "node.log"
        self.vhosts = Vhosts(self)
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the node was started, and neither stopped nor killed."""
        return self._node is not None

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of the node, epmd included."""
        return tuple(process.pid for process in (self._epmd, self._node) if process is not None)

    def create(self) -> None:
        """Write the node's files, its accounts and the vhost ``/`` among them; start nothing yet."""
        self.directory.mkdir(mode=0o755)
        for name in ("log", "data", "home"):
            (self.directory / name).mkdir(mode=0o750)
        self._write("rabbitmq.conf", _CONFIGURATION.format(port=self.port, directory=self.directory))
        self._write("rabbitmq-env.conf", "")
        self._write("enabled_plugins", "[].\n")
        self._write("definitions.json", self._definitions(["/"] if self._beside is None else []))
        self._write("home/.erlang.cookie", self._cookie, mode=0o400)
        for path in (self.directory, *self.directory.rglob("*")):
            shutil.chown(path, "rabbitmq", "rabbitmq")

    def start(self, seconds: float = 90.0, noted: Callable[[int], None] = lambda _pid: None) -> None:
        """Start the node and wait until it takes connections; ``noted`` hears of each process."""
        if self._epmd is None and self._beside is None:
            self._epmd = start(
                ["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)],
                environment={"HOME": str(self.directory / "home")},
                log=self.log.with_name("epmd.log"),
                user="rabbitmq",
            )
            noted(self._epmd.pid)
        ready = ReadinessSocket(self.directory / "ready")
        try:
            # With NOTIFY_SOCKET the start script executes the VM itself: the pid is the node's, not a shell's.
            environment = {**self._environment(), "NOTIFY_SOCKET": str(ready.path)}
            self._node = start([RABBITMQ / "rabbitmq-server"], environment=environment, log=self.log, user="rabbitmq")
            noted(self._node.pid)
            ready.wait(self._node, seconds, self.log)
        finally:
            ready.close()

    def stop(self) -> None:
        """Stop the node in good order; what is durable stays."""
        if self._node is not None:
            end(process_id(self._node.pid), grace=60.0)
            self._node.wait()
            self._node = None

    def kill(self) -> None:
        """End the node with SIGKILL, as a crash of the host would."""
        if self._node is not None:
            self._node.kill()
            self._node.wait()
            self._node = None

    def restart(self) -> None:
        """Stop and start the node."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """End everything of this node and delete its files."""
        self.kill()
        if self._epmd is not None:
            end(process_id(self._epmd.pid))
            self._epmd.wait()
            self._epmd = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl``; give what it prints.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        command = ["setpriv", "--reuid", "rabbitmq", "--regid", "rabbitmq", "--clear-groups", "--"]
        done = subprocess.run(
            [*command, RABBITMQ / "rabbitmqctl", "--quiet", *arguments],
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8", **self._environment()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def add_vhosts(self, names: Iterable[str]) -> None:
        """Make vhosts, empty, with the permissions of all three accounts, in one go."""
        self._write("definitions.json", self._definitions(list(names)))
        shutil.chown(self.directory / "definitions.json", "rabbitmq", "rabbitmq")
        self.ctl("import_definitions", str(self.directory / "definitions.json"))

    def _write(self, name: str, text: str, mode: int = 0o640) -> None:
        path = self.directory / name
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)

    def _definitions(self, vhosts: list[str]) -> str:
        return definitions((self.server, self.listener, self.executors), vhosts)

    def _environment(self) -> dict[str, str]:
        directory = self.directory
        return {
            "HOME": str(directory / "home"),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK,
            "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK,
            "RABBITMQ_CTL_DIST_PORT_MIN": str(self._cli),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(self._cli),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_PID_FILE": str(directory / "data" / "node.pid"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }


def broker_accounts() -> tuple[BrokerAccount, BrokerAccount, BrokerAccount]:
    """Give the accounts of KNIME Server, of the listener and of the executors, with new passwords."""
    return (
        BrokerAccount("knime-server", (".*", ".*", ".*"), _password()),
        BrokerAccount("knime-listener", _LISTENER, _password()),
        BrokerAccount("knime-executors", _EXECUTORS, _password()),
    )


def definitions(accounts: Iterable[BrokerAccount], vhosts: Iterable[str]) -> str:
    """Give what RabbitMQ imports (``load_definitions``): vhosts, accounts and their permissions."""
    return json.dumps(
        {
            "users": [
                {
                    "name": account.name,
                    "password_hash": _password_hash(account.password),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": [],
                }
                for account in accounts
            ],
            "vhosts": [{"name": vhost} for vhost in vhosts],
            "permissions": [
                {"user": account.name, "vhost": vhost, **dict(zip(_KINDS, account.permissions, strict=True))}
                for account in accounts
                for vhost in vhosts
            ],
        },
    )


_PORTS: Final = range(15000, 32000)
_KINDS: Final = ("configure", "write", "read")
_OWN: Final = r"^knime-jobs\.parked$|^knime-peruser\..*"
_LISTENER: Final = (
    _OWN,
    rf"{_OWN}|^{JOBS_EXCHANGE}$|^amq\.default$",
    r"^knime-jobs(\.parked)?$|^knime-peruser\..*",
)
_EXECUTORS: Final = ("^$", f"^{JOBS_EXCHANGE}$|^{RESULTS_EXCHANGE}$", "^knime-jobs$")
_LOOPBACK: Final = "-kernel inet_dist_use_interface {127,0,0,1}"
# The alarms of a small test machine's memory and disk would stop every publisher; RabbitMQ 4 takes 16 MiB by default.
_CONFIGURATION: Final = """\
listeners.tcp.1 = 127.0.0.1:{port}
load_definitions = {directory}/definitions.json
disk_free_limit.absolute = 50MB
max_message_size = 134217728
log.file.level = info
"""


def _password() -> str:
    return f"a:b@c/d,e%f {secrets.token_urlsafe(18)}"


def _password_hash(password: str) -> str:
    """Hash as https://www.rabbitmq.com/docs/passwords#computing-password-hash says."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode("ascii")


def _free_ports(count: int) -> list[int]:
    """Give ports outside the range of outgoing connections.

    In it a client that tries again while the node is down may be given the very port, and connect to itself.
    """
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            one = held.enter_context(socket.socket())
            port = secrets.choice(_PORTS)
            with suppress(OSError):
                one.bind(("127.0.0.1", port))
                found.append(port)
    return found
