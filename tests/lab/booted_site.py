"""A whole site in a booted machine: directory, broker, units as they are installed, simulated KNIME.

Both daemons run from their units with the shipped configuration, under ``systemctl``. KNIME Server's side is in the
test's own process: its connection is made in the machine's network.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pika

from protocol.codec import decode_reply
from protocol.messages import ExecutorEntry, Executors
from tests.lab import own_package
from tests.lab.broker_node import broker_accounts, definitions
from tests.lab.ldap import Directory
from tests.lab.machine import PACKAGES, Machine
from tests.lab.processes import wait_for
from tests.lab.toml import dumps
from tests.simulated_knime.server import Report, SimulatedServer

CHECKOUT: Final = own_package.CHECKOUT
HELPER: Final = "knime-root-helper.service"
LISTENER: Final = "knime-broker-listener.service"
SLICE: Final = "knime-executors.slice"
USERS: Final = 400
NAMED: Final = slice(100, 300)
"""Of these users tests name some themselves."""
_PORT: Final = 5672
_INSTALL: Final = (
    *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "--yes"),
    *("-o", "Dpkg::Options::=--force-confold", "install"),
)
_RESTARTED_BY_TESTS: Final = ("sssd", "slapd", "dbus", "rabbitmq-server", "systemd-logind", "autofs")
_SLICE_CGROUP: Final = f"/sys/fs/cgroup/knime.slice/{SLICE}"


class BootedSite:
    """One site; ``restore`` brings it back to a running one with nothing in its queues and no executor."""

    def __init__(self, suite: str, directory: Path, packages: Sequence[str] = PACKAGES) -> None:
        self.machine = Machine(suite, directory, packages)
        self.directory = Directory(self.machine, USERS)
        self._server_account, self._listener_account, self._executors_account = broker_accounts()
        self._fresh = iter([*self.directory.names[: NAMED.start], *self.directory.names[NAMED.stop : -1]])
        self._changed: set[str] = set()
        self._drop_ins: set[str] = set()
        self._server: SimulatedServer | None = None

    @property
    def server(self) -> SimulatedServer:
        """KNIME Server's side."""
        assert self._server is not None
        return self._server

    @property
    def listener_account(self) -> str:
        """The listener's account at the broker."""
        return self._listener_account.name

    def create(self) -> None:
        """Lay everything out, boot, and wait until both daemons are at work."""
        self.machine.create()
        self.machine.offline(*_INSTALL, own_package.built(own_package.LOWER, self.machine.root))
        self._write_credentials()
        self.directory.write()
        self._write_broker()
        self._write_knime()
        self._lift_start_limits()
        self.machine.offline("sh", "-ec", f"{Directory.LOAD}; systemctl enable -q {HELPER} {LISTENER}; useradd local1")
        self.machine.boot()
        self.connect()
        self.wait_until_served()

    def upgrade(self, package: str) -> None:
        """Install another package over the one that is there, whichever is newer; what runs is restarted."""
        self.machine.run(*_INSTALL, "--allow-downgrades", package)

    def connect(self) -> None:
        """Be KNIME Server; once more after a reboot."""
        self.disconnect()
        with self.machine.network():
            self._server = SimulatedServer(self._server_account.at(_PORT, "/"))

    def disconnect(self) -> None:
        """Be KNIME Server no longer."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def wait_until_served(self, seconds: float = 20.0) -> None:
        """Wait until the listener consumes the queue."""
        wait_for(lambda: self._consumers() > 0, seconds, "a consumer of the queue")

    def fresh_users(self, count: int) -> list[str]:
        """Give users of the directory whom no test has used yet, and none names."""
        return [next(self._fresh) for _ in range(count)]

    def configure_helper(self, **tables: Mapping[str, object]) -> None:
        """Restart the helper with these keys and the defaults; the test's end takes them back."""
        self._configure("helper.toml", HELPER, tables)

    def configure_listener(self, **tables: Mapping[str, object]) -> None:
        """Restart the listener with these keys and the defaults; the test's end takes them back."""
        self._configure("listener.toml", LISTENER, {**tables, "broker": {**self._broker, **tables.get("broker", {})}})
        self.wait_until_served()

    def spoil(self, unit: str, configuration: str = "") -> None:
        """Note that a unit's files are being made faulty, and write a faulty configuration; nothing is restarted."""
        self._changed.add(unit)
        if configuration:
            name = {HELPER: "helper.toml", LISTENER: "listener.toml"}[unit]
            self.machine.write(f"/etc/knime-peruser/{name}", configuration)

    def clean(self, snippet: str) -> bool:
        """Do the age-based cleaning of a tmpfiles.d snippet, as systemd-tmpfiles-clean.timer does."""
        return self.machine.status("systemd-tmpfiles", "--clean", snippet) == 0

    def processes_in(self, unit: str) -> set[tuple[int, str]]:
        """Give uid and command of each process of a unit."""
        group = self.show(unit, "ControlGroup")
        pids = self.machine.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split()
        lines = self.machine.run("ps", "-o", "uid=,args=", "-p", ",".join(pids)).splitlines()
        return {(int(uid), command) for uid, _, command in (line.strip().partition(" ") for line in lines)}

    def pids_of(self, *programs: str) -> list[int]:
        """Give the pids, inside, of the processes of these programs (their executables' paths)."""
        script = "for p in /proc/[0-9]*; do echo ${p#/proc/} $(readlink $p/exe); done"
        lines = self.machine.run("sh", "-c", script, check=False).splitlines()
        return [int(pid) for pid, _, path in (line.partition(" ") for line in lines) if path in programs]

    def end(self, pid: int) -> None:
        """Kill an executor by its pid inside, and wait until its scope is gone."""
        scope = next(name for name, pids in self.executors().items() if pid in pids)
        self.machine.run("kill", "-KILL", str(pid))
        wait_for(lambda: scope not in self.executors(), 10, f"the end of {scope}")

    def configure_knime(self, **settings: object) -> None:
        """Say how executors behave from their next start on."""
        self.machine.write("/opt/knime/simulated.json", json.dumps(settings))

    def drop_in(self, unit: str, text: str) -> None:
        """Add a drop-in to a unit and reload; the test's end takes it away."""
        self._drop_ins.add(unit)
        self.machine.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def systemctl(self, *arguments: str) -> str:
        """Call the service manager inside; give what it printed."""
        return self.machine.run("systemctl", *arguments)

    def show(self, unit: str, name: str) -> str:
        """Give a property of a unit."""
        return self.systemctl("show", "--value", "-p", name, unit).strip()

    def main_pid(self, unit: str) -> int:
        """Give the pid, inside, of a service's main process."""
        return int(self.show(unit, "MainPID"))

    def job(self, user: str, seconds: float = 30.0, **keywords: Any) -> Report:
        """Publish a job and give its result; of others' results none may come."""
        job = self.server.publish(user, **keywords)
        (report,) = self.server.results(1, seconds)
        assert report["job"] == job
        return report

    def shell(self, user: str, command: str) -> str:
        """Have a user's executor run a command; give what it printed, or fail with it."""
        status, output = self._run_as(user, command)
        assert status == 0, output
        return output

    def tried(self, user: str, command: str) -> int:
        """Have a user's executor run a command; give its exit status."""
        return self._run_as(user, command)[0]

    def jobs_of(self, users: list[str], seconds: float = 60.0, **keywords: Any) -> dict[str, Report]:
        """Publish a job for each user at once; give the results by user."""
        for user in users:
            self.server.publish(user, **keywords)
        return {report["user"]: report for report in self.server.results(len(users), seconds)}

    def publish_shell(self, user: str, command: str) -> None:
        """Publish a job that runs a command; its report has exit status and output as ``shell``."""
        body = {"user": user, "job": "shell", "reply_to": self.server._reply_to, "shell": command}
        headers = pika.BasicProperties(headers={"canHandle": False}, delivery_mode=2)
        self.server.publish_raw(json.dumps(body).encode(), headers)

    def executors(self) -> dict[str, list[int]]:
        """Give the pids in each scope below the slice, by the scope's name."""
        text = self.machine.run("sh", "-c", f"grep -H . {_SLICE_CGROUP}/*/cgroup.procs 2>/dev/null || true")
        found: dict[str, list[int]] = {}
        for line in text.splitlines():
            path, _, pid = line.rpartition(":")
            found.setdefault(Path(path).parent.name, []).append(int(pid))
        return found

    def ask_helper(self, **request: object) -> str:
        """Ask the helper on the operators' socket, as root; give its reply."""
        frame = json.dumps({"v": 1, "id": "test", **request})
        return self.machine.run("/usr/bin/python3", "-c", _ASK, frame)

    def listed(self) -> list[ExecutorEntry]:
        """Give all executors that the helper knows."""
        entries: list[ExecutorEntry] = []
        after: str | None = ""
        while after is not None:
            reply = decode_reply(self.ask_helper(op="list", after=after).encode("ascii"))
            assert isinstance(reply, Executors)
            entries += reply.executors
            after = reply.next
        return entries

    def reboot(self) -> None:
        """Power off, boot, connect again."""
        self.disconnect()
        self.machine.reboot()
        self.connect()
        self.wait_until_served()

    def audit(self, user: str | None = None) -> list[dict[str, Any]]:
        """Give the audit records, of one user or of all."""
        text = (self.machine.root / "var/log/knime-peruser/audit.jsonl").read_text(encoding="ascii")
        records = [json.loads(line) for line in text.splitlines()]
        return [record for record in records if user is None or record["user"] == user]

    def restore(self) -> None:
        """Take changes back, end all executors, empty the queues, and see to it that everything runs."""
        self.systemctl("stop", LISTENER)
        for unit in self._drop_ins:
            (self.machine.root / f"etc/systemd/system/{unit}.d/test.conf").unlink()
        self._write_configuration()
        self._write_credentials()
        self.configure_knime()
        self.machine.run("sh", "-c", f"test ! -e {_SLICE_CGROUP} || echo 1 > {_SLICE_CGROUP}/cgroup.kill")
        wait_for(lambda: not self.executors(), 10, "the end of all executors")
        self.connect()
        for queue in ("knime-jobs", "knime-jobs.parked"):
            self.server.channel.queue_purge(queue)
        if self._drop_ins:
            self.systemctl("daemon-reload")
        if self._changed | self._drop_ins:
            self.systemctl("restart", *sorted(self._changed | self._drop_ins))
        self._drop_ins, self._changed = set(), set()
        self.systemctl("start", "dbus.socket", "dbus.service", "slapd", "sssd", HELPER, LISTENER)
        self.wait_until_served()

    def _run_as(self, user: str, command: str) -> tuple[int, str]:
        self.publish_shell(user, command)
        (report,) = self.server.results(1, 30)
        return report["shell"]["status"], report["shell"]["output"]

    def _configure(self, name: str, unit: str, tables: Mapping[str, Mapping[str, object]]) -> None:
        self._changed.add(unit)
        self.machine.write(f"/etc/knime-peruser/{name}", dumps(tables))
        self.machine.run("systemctl", "restart", unit)

    @property
    def _broker(self) -> dict[str, object]:
        return {"urls": [self._listener_account.at(_PORT, "/", with_password=False)]}

    def _write_configuration(self) -> None:
        self.machine.write("/etc/knime-peruser/helper.toml", "")
        self.machine.write("/etc/knime-peruser/listener.toml", dumps({"broker": self._broker}))

    def _write_credentials(self) -> None:
        executors = self._executors_account.at(_PORT, "/")
        self.machine.write("/etc/knime-peruser/executor-msgq", f"{executors}\n", 0o600)
        self.machine.write("/etc/knime-peruser/broker-password", self._listener_account.password, 0o600)

    def _lift_start_limits(self) -> None:
        """Let tests restart the services around ours as often as they like.

        systemd starts a unit at most five times in 10 s (DefaultStartLimitBurst=, systemd-system.conf(5)); no host
        sees that many restarts, but one test after another does. Our own units have no such limit as they are shipped.
        """
        for unit in _RESTARTED_BY_TESTS:
            self.machine.write(f"/etc/systemd/system/{unit}.service.d/lab.conf", "[Unit]\nStartLimitIntervalSec=0\n")

    def _write_broker(self) -> None:
        accounts = (self._server_account, self._listener_account, self._executors_account)
        self.machine.write("/etc/rabbitmq/definitions.json", definitions(accounts, ["/"]))
        self.machine.write("/etc/rabbitmq/rabbitmq.conf", _RABBITMQ)

    def _write_knime(self) -> None:
        program = (CHECKOUT / "tests/simulated_knime/knime").read_text(encoding="utf-8")
        self.machine.write("/opt/knime/knime", program, 0o755)
        self.configure_knime()
        self._write_configuration()

    def _consumers(self) -> int:
        return int(self._declared("knime-jobs").consumer_count)

    def _declared(self, queue: str) -> Any:
        return self.server.channel.queue_declare(queue, passive=True).method


_ASK: Final = """\
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(5)
s.connect("/run/knime-peruser/operator.sock")
s.send(sys.argv[1].encode())
print(s.recv(4096).decode(), end="")
"""
_RABBITMQ: Final = f"""\
listeners.tcp.1 = 127.0.0.1:{_PORT}
load_definitions = /etc/rabbitmq/definitions.json
disk_free_limit.absolute = 50MB
"""


def booted_site(suite: str, directory: Path, packages: Sequence[str] = PACKAGES) -> Iterator[BootedSite]:
    """Give a site for a fixture: made, then removed whatever happens."""
    site = BootedSite(suite, directory, packages)
    try:
        site.create()
        yield site
    finally:
        site.disconnect()
        site.machine.remove()
