"""What ``check`` knows, each fault in a tree of files that is sound but for it; programs are answered for."""

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from unittest.mock import patch

import pytest

from broker_listener.config import BrokerConfig, ClusterConfig, HandOverConfig, ListenerConfig
from broker_listener.operator import check_page, output
from broker_listener.operator.check import LOCAL, asked
from broker_listener.operator.checks import host as host_checks
from broker_listener.operator.checks import workspaces as workspace_checks
from broker_listener.operator.checks.finding import Finding, Inputs, Level, Ran, patient_once
from broker_listener.operator.checks.knime import EXAMPLES, TEMP_DIR_LINE
from broker_listener.operator.checks.running import Running
from broker_listener.operator.configuration import Configuration, HelperKeys, LimitKeys, SocketKeys, UserKeys
from broker_listener.operator.listener_socket import Snapshot, decoded
from tests.lab.check_faults import GRAVE, noting, unprovoked

pytestmark = [
    pytest.mark.needs("root"),
    pytest.mark.library,
]

SOUND_INI = f"""\
-profileLocation
/etc/knime-peruser/profiles
-profileList
per-user
-vmargs
-Xmx2g
-Dorg.knime.core.maxThreads=4
-Dcom.knime.executor.autoshutdown.delay_in_min=30
-Dunrelated={TEMP_DIR_LINE}
"""
UNITS = """\
Id={}
LoadState=loaded
ActiveState=active
UnitFileState=enabled
"""


class Host:
    """A host as files and answers, sound until a test breaks it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers: dict[str, Ran] = {
            "getent passwd": Ran(2, "knime-listener:x:999:999::/:/usr/sbin/nologin\n"),
            "getent passwd --": Ran(2, "daemon:x:1:1:daemon:/:/usr/sbin/nologin\n"),
            "getent -s": Ran(2, ""),
            "systemctl show": Ran(0, "\n".join(map(UNITS.format, RUNNING_UNITS))),
            "timedatectl show": Ran(0, "yes\n"),
            "/usr/bin/env CREDENTIALS_DIRECTORY=/etc/knime-peruser": Ran(0, ""),
            "rabbitmqctl": Ran(0, "{ok,16777216}\n"),
        }
        self.configuration = Configuration(
            Path("/etc/knime-peruser"),
            ListenerConfig(),
            HelperKeys(limits=LimitKeys(max_executors=10), users=UserKeys(allow_groups=("analysts",))),
        )
        self.running: Running | str = Running(0, frozenset({400}), frozenset({1000}), draining=False, free=9)
        self.listener: Snapshot | str = "the listener was not asked"
        self.server_config: Path | None = None
        self.changes: list[AbstractContextManager[object]] = []
        """What files cannot tell: a file system, the time that an answer took, the version of a library."""
        for path, text in FILES.items():
            self.write(path, text)
        for path in ("srv/knime/workspaces", "srv/knime/temp", "var/log/knime-peruser", "run/systemd/system", "proc"):
            (root / path).mkdir(parents=True, exist_ok=True)
        (root / "opt/knime/knime").chmod(0o755)
        for name in ("broker-password", "executor-msgq"):
            (root / "etc/knime-peruser" / name).chmod(0o600)
        self.process(400, "com.knime.enterprise.slave.KNIME_REMOTE_APPLICATION")

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
        file.chmod(0o644)
        return file

    def process(self, pid: int, *words: str, environ: str = "", cgroup: str = "0::/", parent: int = 1) -> None:
        self.write(f"proc/{pid}/cmdline", "\0".join(("/opt/knime/knime", *words)) + "\0")
        self.write(f"proc/{pid}/environ", environ)
        self.write(f"proc/{pid}/cgroup", cgroup)
        self.write(f"proc/{pid}/stat", f"{pid} (knime) S {parent} 1")

    def run(self, command: Sequence[str]) -> Ran:
        line = " ".join(command)
        found = [answer for begin, answer in self.answers.items() if line.startswith(begin)]
        return found[-1] if found else Ran(None, f"{command[0]}: not here")

    def findings(self) -> list[Finding]:
        inputs = Inputs(
            self.configuration,
            root=self.root,
            run=self.run,
            running=self.running,
            listener=self.listener,
            server_config=self.server_config,
        )
        left_out = {"sockets"}  # sockets are made by the daemons: tests/integration
        with ExitStack() as changed:
            for change in self.changes:
                changed.enter_context(change)
            return list(asked([question for question in LOCAL if question.__name__ not in left_out], inputs))

    def keys(self, **changes: object) -> None:
        self.configuration = replace(self.configuration, helper=replace(self.configuration.helper, **changes))


RUNNING_UNITS = ("knime-root-helper.service", "knime-broker-listener.service", "sssd.service")
FILES = {
    "etc/knime-peruser/listener.toml": "",
    "etc/knime-peruser/helper.toml": "",
    "etc/knime-peruser/broker-password": "s3cret\n",
    "etc/knime-peruser/executor-msgq": "amqp://e:s3cret@127.0.0.1:5672/%2F\n",
    "etc/knime-peruser/profiles/per-user/knime-peruser.epf": f"{TEMP_DIR_LINE}\n",
    "etc/nsswitch.conf": "passwd: files sss\ngroup: files sss\n",
    "etc/group": "root:x:0:\nanalysts:x:2000:\n",
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
    "etc/systemd/logind.conf": "[Login]\n#RemoveIPC=yes\n",
    "etc/systemd/logind.conf.d/knime.conf": "[Login]\nRemoveIPC=no\n",
    "usr/lib/systemd/systemd-logind": "",
    "opt/knime/knime": "#!/bin/sh\n",
    "opt/knime/knime.ini": SOUND_INI,
    "opt/knime/dropins/com.knime.enterprise.executor.autoshutdown_1.0.jar": "",
    "opt/knime/configuration/org.eclipse.equinox.simpleconfigurator/bundles.info": "",
    "proc/meminfo": "MemTotal:       65536000 kB\n",
}
INFOPIPE = "busctl --timeout=2 call org.freedesktop.sssd.infopipe"
ONLINE = {
    f"{INFOPIPE} /org/freedesktop/sssd/infopipe org.freedesktop.sssd.infopipe ListDomains": Ran(
        0, 'ao 1 "/org/freedesktop/sssd/infopipe/Domains/example"\n'
    ),
    f"{INFOPIPE} /org/freedesktop/sssd/infopipe/Domains/example": Ran(0, "b true\n"),
}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    made.answers |= ONLINE
    yield made
    shutil.rmtree(tmp_path)


def test_a_sound_host_has_no_warning_and_no_fault(host: Host) -> None:
    wrong = [finding for finding in host.findings() if finding.level in {Level.WARNING, Level.FAULT}]
    assert wrong == []


def test_every_answer_that_is_not_well_says_what_to_do(host: Host) -> None:
    shutil.rmtree(host.root / "opt")
    shutil.rmtree(host.root / "srv")
    wrong = [finding for finding in host.findings() if finding.level in {Level.WARNING, Level.FAULT}]
    assert wrong
    assert all(finding.advice for finding in wrong)


def chmod(path: str, mode: int) -> Callable[[Host], object]:
    return lambda host: (host.root / path).chmod(mode)


def chown(path: str, uid: int) -> Callable[[Host], object]:
    return lambda host: os.chown(host.root / path, uid, 0)


def unlink(path: str) -> Callable[[Host], object]:
    return lambda host: (host.root / path).unlink()


def write(path: str, text: str) -> Callable[[Host], object]:
    return lambda host: host.write(path, text)


def holding(credential: str, text: str) -> Callable[[Host], object]:
    return lambda host: (host.root / "etc/knime-peruser" / credential).write_text(text, "utf-8")


def ini(old: str, new: str) -> Callable[[Host], object]:
    return write("opt/knime/knime.ini", SOUND_INI.replace(old, new))


def answer(command: str, status: int | None, output: str) -> Callable[[Host], object]:
    return lambda host: host.answers.update({command: Ran(status, output)})


def newer_dropin(host: Host) -> None:
    jar = next((host.root / "opt/knime/dropins").iterdir())
    os.utime(jar, (jar.stat().st_mtime + 60, jar.stat().st_mtime + 60))


def without_plug_in(host: Host) -> None:
    shutil.rmtree(host.root / "opt/knime/dropins")


def state(host: Host, **changes: object) -> None:
    assert isinstance(host.running, Running)
    host.running = replace(host.running, **changes)


def server_config(text: str) -> Callable[[Host], object]:
    return lambda host: setattr(host, "server_config", host.write("knime-server.config", text))


def workspace(name: str, uid: int, tree: str = "workspaces") -> Callable[[Host], object]:
    def make(host: Host) -> None:
        (host.root / "srv/knime" / tree / name).mkdir()
        os.chown(host.root / "srv/knime" / tree / name, uid, 0)

    return make


def unit(name: str, text: str) -> Callable[[Host], object]:
    def change(host: Host) -> None:
        blocks = [UNITS.format(other) for other in RUNNING_UNITS if other != name]
        host.answers["systemctl show"] = Ran(0, "\n".join([*blocks, f"Id={name}\n{text}"]))

    return change


def changed(target: object, name: str, value: object) -> Callable[[Host], object]:
    return lambda host: host.changes.append(patch.object(target, name, value))


def without_acl(*_: object) -> bytes:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def slow_names(host: Host) -> None:
    looks = iter((0.0, 3.0))
    changed(host_checks, "monotonic", lambda: next(looks, time.monotonic()))(host)


def others(*, state: str = "up", **cluster: object) -> Callable[[Host], object]:
    """Have the listener hear one other host, or what else it is to tell of them; ``state`` is its connection's."""

    def change(host: Host) -> None:
        told: dict[str, object] = {"host": "a", "hosts": [SELF, OTHER], "namesakes": 0, "ignored": 0, "executors": []}
        connection = {"state": state, "server": None, "since": 1.0, "why": "403 ACCESS_REFUSED"}
        document = {**STATUS, "connections": {"hosts": connection}, "cluster": told | cluster}
        cluster_on(host)
        host.listener = decoded(json.dumps(document).encode())

    return change


def cluster_on(host: Host) -> None:
    listener = replace(host.configuration.listener, cluster=ClusterConfig(enabled=True))
    host.configuration = replace(host.configuration, listener=listener)


def started_without_the_cluster(host: Host) -> None:
    cluster_on(host)
    host.listener = decoded(json.dumps(STATUS).encode())


SELF = {"host": "a", "state": "up", "free": 9, "executors_per_user": "all", "heard": None}
OTHER = {"host": "b", "state": "up", "free": 9, "executors_per_user": "all", "heard": 1.0}
STATUS = {
    "v": 1,
    "host": "a",
    "version": "1",
    "pid": 7,
    "since": 1.0,
    "consuming": True,
    "queue": "q",
    "mode": "republish",
    "parked_queue": "p",
    "under_way": 0,
    "held": {},
    "totals": {"parked": {}},
    "users": [],
    "cluster": None,
    "connections": {},
    "helper": {"state": "up", "since": 1.0, "draining": False, "free": 9},
}
WAITING = {"state": "backing_off", "since": 1.0, "held": 1, "handed_over": 0, "returned": 0, "parked": 0, "pid": None}


def told(**status: object) -> Callable[[Host], object]:
    """Have the listener tell this of itself."""

    def change(host: Host) -> None:
        host.listener = decoded(json.dumps({**STATUS, **status}).encode())

    return change


def host_fault(reason: str) -> Callable[[Host], object]:
    return told(host_faults=[{"reason": reason, "since": 1.0, "users": 3}])


FULL = SimpleNamespace(f_bavail=9, f_blocks=100, f_favail=50, f_files=100)
NO_INODES = SimpleNamespace(f_bavail=50, f_blocks=100, f_favail=9, f_files=100)
EXECUTOR = "com.knime.enterprise.slave.KNIME_REMOTE_APPLICATION"
OURS = "KNIME_EXECUTOR_MSGQ=amqp://e:s3cret@broker:5672/%2F\0"
FAULTS: dict[str, tuple[Callable[[Host], object], str, Level, str]] = {
    "a listener that was started before the cluster was on": (
        started_without_the_cluster, "hosts.others", Level.FAULT, "systemctl restart"),
    "an exchange that may not be used": (others(state="down"), "hosts.others", Level.FAULT, "rights"),
    "two hosts of one name": (others(namesakes=3), "hosts.others", Level.FAULT, "cluster.host"),
    "nobody else": (others(hosts=[SELF]), "hosts.others", Level.WARNING, "cluster.enabled true there"),
    "hosts that want different numbers": (
        others(hosts=[SELF, {**OTHER, "executors_per_user": 2}]), "hosts.others", Level.WARNING, "the same on all"),
    "a file of another account in the installation": (
        chown("opt/knime/knime.ini", 1234), "installation.owner", Level.FAULT, "chown -R root:root /opt/knime"),
    "a file that others can write": (
        chmod("opt/knime/knime.ini", 0o666), "installation.owner", Level.FAULT, "chmod -R go-w"),
    "no program": (unlink("opt/knime/knime"), "installation.program", Level.FAULT, "executor.home"),
    "a program that users may not execute": (
        chmod("opt/knime/knime", 0o744), "installation.program", Level.FAULT, "chmod a+rx"),
    "a dropin that users cannot read": (
        chmod("opt/knime/dropins/com.knime.enterprise.executor.autoshutdown_1.0.jar", 0o600),
        "installation.dropins", Level.FAULT, "chmod -R a+rX"),
    "a dropin that its users can write": (
        chmod("opt/knime/dropins/com.knime.enterprise.executor.autoshutdown_1.0.jar", 0o664),
        "installation.dropins", Level.FAULT, "chmod -R go-w /opt/knime/dropins"),
    "a dropin newer than the last clean": (newer_dropin, "installation.clean", Level.WARNING, "knime -clean"),
    "nothing that ends idle executors": (without_plug_in, "installation.autoshutdown", Level.WARNING, "autoshutdown"),
    "no profile": (
        ini("-profileLocation\n/etc/knime-peruser/profiles\n-profileList\nper-user\n", ""),
        "knime.profile", Level.WARNING, TEMP_DIR_LINE),
    "a profile after -vmargs": (
        write("opt/knime/knime.ini", "-vmargs\n-profileLocation\n/x\n-profileList\ny\n-Xmx2g\n"),
        "knime.profile", Level.WARNING, "before -vmargs"),
    "a profile without the line": (
        write("etc/knime-peruser/profiles/per-user/knime-peruser.epf", "/instance/other=1\n"),
        "knime.profile", Level.WARNING, TEMP_DIR_LINE),
    "a profile that others can write": (
        chmod("etc/knime-peruser/profiles/per-user/knime-peruser.epf", 0o666),
        "knime.profile", Level.FAULT, "chmod -R go-w"),
    "no delay of the plug-in": (
        ini("-Dcom.knime.executor.autoshutdown.delay_in_min=30\n", ""), "knime.autoshutdown", Level.WARNING, "=30"),
    "no maxThreads": (ini("-Dorg.knime.core.maxThreads=4\n", ""), "knime.threads", Level.WARNING, "core token"),
    "no Xmx": (ini("-Xmx2g\n", ""), "knime.memory", Level.WARNING, "set it"),
    "one heap larger than the machine": (ini("-Xmx2g", "-Xmx128g"), "knime.memory", Level.FAULT, "lower -Xmx"),
    "heaps that do not fit": (ini("-Xmx2g", "-Xmx16g"), "knime.memory", Level.WARNING, "max_executors to 3"),
    "a load time-out shorter than a start": (
        server_config("com.knime.server.job.default_load_timeout=30s\n"),
        "knime.load_timeout", Level.FAULT, "default_load_timeout=2m"),
    "a load time-out that is none": (
        server_config("com.knime.server.job.default_load_timeout=soon\n"),
        "knime.load_timeout", Level.WARNING, "2m"),
    "the predecessor's 0777": (
        chmod("srv/knime/workspaces", 0o777), "workspaces.workspaces", Level.FAULT, "chmod 0755 /srv/knime/workspaces"),
    "no temp directory": (
        lambda host: (host.root / "srv/knime/temp").rmdir(), "workspaces.temp", Level.FAULT, "install -d"),
    "workspaces that users cannot enter": (
        chmod("srv/knime/workspaces", 0o750), "workspaces.workspaces", Level.FAULT, "chmod 0755"),
    "a file system without ACLs": (
        changed(workspace_checks.os, "getxattr", without_acl), "workspaces.acl", Level.FAULT, "mount it with acl"),
    "no space": (changed(workspace_checks.os, "statvfs", lambda _: FULL), "temp.room", Level.WARNING, "make room"),
    "no inodes": (
        changed(workspace_checks.os, "statvfs", lambda _: NO_INODES), "audit.room", Level.WARNING, "make room"),
    "a workspace of somebody else": (
        workspace("daemon", 1234), "workspaces.owners", Level.WARNING, "chown -R daemon"),
    "a workspace of nobody": (workspace("kpr-gone", 1234), "workspaces.owners", Level.WARNING, "or remove it"),
    "a workspace of nobody that is root's": (
        workspace("kpr-gone", 0), "workspaces.owners", Level.WARNING, "keep or remove"),
    "a workspace of nobody, whose uid is somebody else's now": (
        workspace("kpr-gone", 1), "workspaces.owners", Level.FAULT, "-hR root:root /srv/knime/workspaces/kpr-gone"),
    "a temp directory of nobody, whose uid is somebody else's now": (
        workspace("kpr-gone+Gone", 1, "temp"), "temp.owners", Level.FAULT, "chown -hR root:root /srv/knime/temp/kpr"),
    "a workspace with a KNIME name, of somebody else": (
        workspace("daemon+Daemon", 1234), "workspaces.owners", Level.WARNING, "chown -R daemon"),
    "the predecessor's temp": (workspace("daemon_temp", 1), "workspaces.owners", Level.WARNING, "remove"),
    "a file in place of a workspace": (
        write("srv/knime/workspaces/daemon", ""), "workspaces.owners", Level.WARNING, "move"),
    "no name service": (answer("getent passwd", None, "getent: no answer in time"), "host.names", Level.FAULT, "time"),
    "a name service that takes its time": (slow_names, "host.names", Level.WARNING, "time getent"),
    "no account of the listener": (answer("getent passwd", 2, ""), "host.names", Level.FAULT, "systemd-sysusers"),
    "SSSD down, which D-Bus would start for whoever asks it": (
        unit("sssd.service", "ActiveState=failed\n"), "host.sssd", Level.FAULT, "systemctl status sssd"),
    "SSSD without InfoPipe": (answer(INFOPIPE, 1, ""), "host.sssd", Level.WARNING, "sssd-dbus"),
    "an SSSD domain offline": (
        answer(f"{INFOPIPE} /org/freedesktop/sssd/infopipe/Domains/example", 0, "b false\n"),
        "host.sssd", Level.WARNING, "sssctl"),
    "a group name with two gids": (
        answer("getent -s", 0, "sudo:*:3000:\nsudo:*:27:\n"), "host.groups", Level.FAULT, "rename"),
    "a group with one gid in files and another in SSSD": (
        answer("getent -s sss", 0, "analysts:*:3000:\n"), "host.groups", Level.FAULT, "rename"),
    "an allowed group that does not exist": (
        write("etc/group", "root:x:0:\n"), "host.groups", Level.FAULT, "users.allow_groups"),
    "RemoveIPC by default": (
        unlink("etc/systemd/logind.conf.d/knime.conf"), "host.remove_ipc", Level.WARNING, "RemoveIPC=no"),
    "RemoveIPC by a later file": (
        write("etc/systemd/logind.conf.d/z.conf", "[Login]\nRemoveIPC=yes\n"),
        "host.remove_ipc", Level.WARNING, "RemoveIPC=no"),
    "a broker that takes 128 MiB": (
        answer("rabbitmqctl", 0, "{ok,134217728}\n"),
        "broker.message_size",
        Level.WARNING,
        "max_message_size = 16777216",
    ),
    "a clock that nobody keeps": (answer("timedatectl show", 0, "no\n"), "host.clock", Level.WARNING, "chrony"),
    "a daemon that does not run": (
        unit("knime-root-helper.service", "LoadState=loaded\nActiveState=failed\nUnitFileState=enabled\n"),
        "host.units.knime-root-helper", Level.FAULT, "systemctl status"),
    "a daemon that is not installed": (
        unit("knime-broker-listener.service", "LoadState=not-found\nActiveState=inactive\nUnitFileState=\n"),
        "host.units.knime-broker-listener", Level.FAULT, "install"),
    "a daemon that is not enabled": (
        unit("knime-root-helper.service", "LoadState=loaded\nActiveState=active\nUnitFileState=disabled\n"),
        "host.units.knime-root-helper", Level.WARNING, "systemctl enable"),
    "a library that is too old": (
        changed(host_checks, "LIBRARIES", {"pika": (99,)}), "host.libraries", Level.FAULT, "distribution's packages"),
    "a system that nobody has tried": (
        write("etc/os-release", 'ID=ubuntu\nVERSION_ID="24.04"\n'), "host.system", Level.WARNING, "not tried yet"),
    "another system": (write("etc/os-release", "ID=gentoo\n"), "host.system", Level.WARNING, "Debian 12"),
    "KNIME's own executor unit": (
        unit("knime-executor.service", "LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled\n"),
        "host.foreign_units", Level.FAULT, "systemctl disable --now knime-executor.service"),
    "the predecessor's unit": (
        unit("knime-executor-per-user.service", "LoadState=loaded\nActiveState=active\nUnitFileState=disabled\n"),
        "host.foreign_units", Level.FAULT, "systemctl disable --now knime-executor-per-user.service"),
    "the predecessor, which crashes and is started again": (
        unit("knime-executor-per-user.service", "LoadState=loaded\nActiveState=activating\nUnitFileState=disabled\n"),
        "host.foreign_units", Level.FAULT, "systemctl disable --now knime-executor-per-user.service"),
    "the predecessor's process": (
        lambda host: host.process(500, "/opt/x/knime_executor_per_user_starter.py", "x.config"),
        "host.executors", Level.FAULT, "disable --now"),
    "an executor that the helper did not start": (
        lambda host: host.process(501, EXECUTOR, environ=OURS), "host.executors", Level.FAULT, "kill 501"),
    "an executor with its broker in knime.ini": (
        lambda host: host.process(501, EXECUTOR), "host.executors", Level.FAULT, "kill 501"),
    "an open credential": (
        chmod("etc/knime-peruser/broker-password", 0o644), "daemons.broker-password", Level.FAULT, "change the"),
    "no credential": (
        unlink("etc/knime-peruser/executor-msgq"), "daemons.executor-msgq", Level.FAULT, "install -m 0600"),
    "a credential with a byte order mark": (
        holding("broker-password", "\ufeffs3cret\n"), "daemons.broker-password", Level.FAULT,
        "one line without blanks"),
    "a credential of two lines": (
        holding("executor-msgq", "amqp://e:p@h\n#\n"), "daemons.executor-msgq", Level.FAULT,
        "one line without blanks"),
    "a password with a blank at its end": (
        holding("broker-password", "s3cret \n"), "daemons.broker-password", Level.WARNING,
        "one line without blanks"),
    "a URL with a blank at its end": (
        holding("executor-msgq", "amqp://e:p@h \n"), "daemons.executor-msgq", Level.FAULT,
        "one line without blanks"),
    "an empty credential": (
        lambda host: (host.root / "etc/knime-peruser/executor-msgq").write_text(""),
        "daemons.executor-msgq", Level.FAULT, "write it"),
    "a file that is not there where one must be": (
        unlink("etc/knime-peruser/helper.toml"), "daemons.files", Level.WARNING, "ask again"),
    "a configuration that others can write": (
        chmod("etc/knime-peruser/listener.toml", 0o666), "daemons.configuration", Level.FAULT, "chmod go-w"),
    "what the helper refuses": (
        answer("/usr/bin/env CREDENTIALS_DIRECTORY=/etc/knime-peruser /usr/sbin/knime-root-helper", 2,
               "helper.toml: limits.x: unknown key\n"),
        "daemons.knime-root-helper", Level.FAULT, "--check"),
    "what the listener refuses": (
        answer("/usr/bin/env CREDENTIALS_DIRECTORY=/etc/knime-peruser /usr/sbin/knime-broker-listener", 2,
               "listener.toml: broker.x: unknown key\n"),
        "daemons.knime-broker-listener", Level.FAULT, "--check"),
    "no helper": (
        lambda host: setattr(host, "running", "operator.sock: Connection refused"),
        "daemons.helper", Level.FAULT, "systemctl status"),
    "somebody else on the helper's socket": (lambda host: state(host, uid=1000), "daemons.helper", Level.FAULT, "who"),
    "a host on which no start works": (host_fault("spawn_failed"), "starts.host", Level.FAULT, "knime-root-helper"),
    "a host on which executors die": (
        host_fault("died_before_ready"), "starts.host", Level.FAULT, "journalctl -t knime-executor-NAME"),
    "a user who cannot be started while others can": (
        told(users=[{**WAITING, "user": "alice", "reason": "prepare_failed", "blame": "user"}]),
        "starts.users", Level.WARNING, "check --user NAME"),
    "a draining helper": (lambda host: state(host, draining=True), "daemons.helper", Level.WARNING, "undrain"),
    "a full host": (lambda host: state(host, free=0), "daemons.helper", Level.WARNING, "max_executors"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_it_names_what_is_wrong_how_grave_it_is_and_what_to_do(host: Host, what: str) -> None:
    breaks, subject, level, advice = FAULTS[what]
    breaks(host)
    found = [finding for finding in host.findings() if finding.subject == subject and finding.level is not Level.OK]
    assert [finding.level for finding in found] == [level], found
    assert advice in found[0].advice


@pytest.mark.parametrize(
    ("environ", "cgroup", "parent"),
    [
        ("KNIME_EXECUTOR_MSGQ=amqp://e:p@broker:5672/other\0", "0::/", 1),
        ("KNIME_EXECUTOR_MSGQ=amqp://e:p@broker:5673/%2F\0", "0::/", 1),
        (OURS, "0::/knime.slice/knime-executors.slice/knime-executor-alice.scope\n", 1),
        (OURS, "0::/", 400),
    ],
    ids=["another vhost", "another broker", "in a scope of ours", "a child of one of ours"],
)
def test_an_executor_of_another_server_and_those_of_the_helper_are_no_fault(
    host: Host, environ: str, cgroup: str, parent: int
) -> None:
    host.process(502, EXECUTOR, environ=environ, cgroup=cgroup, parent=parent)
    assert [finding.level for finding in host.findings() if finding.subject == "host.executors"] == [Level.OK]


def test_no_warning_and_no_fault_is_without_one_of_these_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a broker or daemons is held in the same way by tests/integration/test_operator_check.py."""
    seen: set[tuple[str, int]] = set()
    for module in {sys.modules[question.__module__] for question in LOCAL} | {sys.modules[asked.__module__]}:
        for name in set(GRAVE) & set(dir(module)):
            monkeypatch.setattr(module, name, noting(getattr(module, name), lambda *place: seen.add(place)))
    for number, (breaks, *_) in enumerate(FAULTS.values()):
        host = Host(tmp_path / f"{number}")
        host.answers |= ONLINE
        breaks(host)
        host.findings()
    assert unprovoked(seen, for_real=False) == []


def test_a_start_time_out_above_the_servers_is_a_fault_whatever_both_are(host: Host) -> None:
    server_config("# nothing\n")(host)
    slow = ListenerConfig(broker=BrokerConfig(), hand_over=HandOverConfig(start_timeout=300.0))
    host.configuration = replace(host.configuration, listener=slow)
    (found,) = [finding for finding in host.findings() if finding.subject == "knime.load_timeout"]
    assert found.level is Level.FAULT
    assert "its default" in found.seen


def test_what_cannot_be_read_is_a_finding_and_the_other_questions_are_asked(host: Host) -> None:
    shutil.rmtree(host.root / "etc/knime-peruser")
    subjects = {finding.subject for finding in host.findings()}
    assert {"daemons.files", "installation.owner"} <= subjects


def test_a_directory_service_that_hangs_keeps_nobody_waiting_for_the_owners_of_workspaces(host: Host) -> None:
    workspace("daemon", 1)(host)
    host.answers["getent passwd --"] = Ran(None, "getent: no answer in time")
    (found,) = [finding for finding in host.findings() if finding.subject == "workspaces.owners"]
    assert found.level is Level.NOT_ASKED


def test_of_a_directory_service_that_hangs_no_group_is_said_to_be_missing(host: Host) -> None:
    write("etc/group", "root:x:0:\n")(host)
    answer("getent -s", None, "getent: no answer in time")(host)
    assert [finding.level for finding in host.findings() if finding.subject == "host.groups"] == [Level.NOT_ASKED]


def test_a_name_service_that_hangs_is_waited_for_once() -> None:
    asked: list[str] = []

    def run(command: Sequence[str]) -> Ran:
        asked.append(" ".join(command))
        return Ran(None, "no answer in time")

    patient = patient_once(run)
    for command in (["env", "a"], ["getent", "a"], ["env", "b"], ["getent", "b"]):
        assert patient(command) == Ran(None, "no answer in time")
    assert asked == ["env a", "getent a", "env b"]


def test_the_profile_is_where_the_advice_has_it_copied_from() -> None:
    layout = (Path(__file__).parents[2] / "systemd/packaging/layout.py").read_text("utf-8")
    assert f'examples="{EXAMPLES}"' in layout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3cret\r\n\n", "and one line"), ("\ufeffs3cret", "byte order mark"), ("s3cret\n#", "more than one line"),
        (" s3cret", "begins with a blank"), ("s3cret\u00a0", "ends with a blank"), ("s3\u200bcret", "cannot be seen"),
    ],
)  # fmt: skip
def test_what_was_not_meant_in_a_password_is_named(host: Host, text: str, said: str) -> None:
    """CR LF and further line ends are nobody's mistake; nothing of the password is quoted."""
    holding("broker-password", text)(host)
    (found,) = [finding for finding in host.findings() if finding.subject == "daemons.broker-password"]
    assert said in found.seen
    assert "s3" not in f"{found.seen} {found.advice}"


def test_no_finding_quotes_a_credential(host: Host) -> None:
    chmod("etc/knime-peruser/executor-msgq", 0o666)(host)
    host.process(501, EXECUTOR, environ=OURS)
    assert "s3cret" not in repr(host.findings())


def own_password_file(host: Host, owner: int, mode: int) -> Finding:
    """Have listener.toml name a file, as without systemd; give what is found of it."""
    file = host.write("etc/listener-password", "s3cret")
    os.chown(file, owner, 0)
    file.chmod(mode)
    broker = BrokerConfig(password_file="/etc/listener-password")
    host.configuration = replace(host.configuration, listener=ListenerConfig(broker=broker))
    host.keys(socket=SocketKeys(listener_user="daemon"))
    (host.root / "etc/knime-peruser/broker-password").unlink()
    (found,) = [finding for finding in host.findings() if finding.subject == "daemons.broker-password"]
    assert "/etc/listener-password" in found.seen
    return found


def test_a_password_file_that_the_configuration_names_may_be_the_listeners_own(host: Host) -> None:
    assert own_password_file(host, 1, 0o400).level is Level.OK


@pytest.mark.parametrize(("owner", "mode"), [(1, 0o604), (1, 0o640), (1234, 0o600)])
def test_a_password_file_that_the_configuration_names_is_closed_to_everybody_else(
    host: Host, owner: int, mode: int
) -> None:
    assert own_password_file(host, owner, mode).level is Level.FAULT


def test_nobody_is_called_by_a_group_that_is_only_denied_and_absent(host: Host) -> None:
    host.keys(users=UserKeys(allow_groups=(), deny_groups=("no-such-group",), map=MappingProxyType({})))
    assert [finding.level for finding in host.findings() if finding.subject == "host.groups"] == [Level.OK]


def test_hosts_that_hear_each_other_are_well_and_one_that_starts_nobody_is_said_to(host: Host) -> None:
    others(hosts=[SELF, {**OTHER, "free": 0}, {**OTHER, "host": "c", "state": "draining"}, {**OTHER, "host": "d"}])(
        host
    )
    (found,) = [finding for finding in host.findings() if finding.subject == "hosts.others"]
    assert found.level is Level.OK
    assert found.seen == "heard: b (full, starts nobody), c (draining, starts nobody), d (room for 9 more)"


def test_where_the_listener_cannot_be_asked_neither_are_its_others(host: Host) -> None:
    cluster_on(host)
    (found,) = [finding for finding in host.findings() if finding.subject == "hosts.others"]
    assert found.level is Level.NOT_ASKED


def test_host_whose_starts_work_is_said_to_be_well(host: Host) -> None:
    """A user who waits for the host's recovery is no finding of its own, nor is a listener that was not asked."""
    (found,) = [finding for finding in host.findings() if finding.subject == "starts.host"]
    assert found.level is Level.NOT_ASKED
    told(users=[{**WAITING, "user": "alice", "reason": "host_fault", "blame": "host"}])(host)
    assert [finding.level for finding in host.findings() if finding.subject.startswith("starts.")] == [Level.OK]


SHOWN = [
    Finding(Level.FAULT, "a.fault", "what was seen " * 20, "what is to be done, with a path /" + "x" * 90),
    Finding(Level.OK, "well", "\x1b[2Jhostile | text"),
]


def test_lines_break_at_words_so_that_levels_stand_alone_at_the_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "width", lambda: 80)
    check_page.print_findings(SHOWN)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["ok", "fault", "1"]
    assert all(len(line) <= 80 or len(line.split()) == 1 for line in lines)
    assert "\x1b" not in "".join(lines)


def test_into_a_pipe_each_finding_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    check_page.print_findings(SHOWN)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_nagios_finds_its_performance_data_behind_the_only_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_page.print_for_nagios([Finding(Level.WARNING, "s", "a | b\nc", "x")], 0.5) == 1
    line = "KNIME-PERUSER WARNING - s: a / b\\nc | ok=0 warning=1 fault=0 not_asked=0 time=0.50s\n"
    assert capsys.readouterr().out == line


def test_message_size_of_a_broker_that_cannot_be_asked_is_not_asked(tmp_path: Path) -> None:
    """On another host, without rabbitmqctl, and when its node is down: with the command to use there."""
    away = replace(ListenerConfig().broker, urls=("amqp://knime@broker.example/%2F",))
    for listener, ran in (
        (replace(ListenerConfig(), broker=away), Ran(0, "{ok,134217728}\n")),
        (ListenerConfig(), Ran(None, "rabbitmqctl: No such file or directory")),
        (ListenerConfig(), Ran(69, "Error: unable to perform an operation on node 'rabbit@host'")),
        (ListenerConfig(), Ran(0, "undefined\n")),
    ):
        host = Host(tmp_path / f"{ran.status} {len(ran.output)}")
        host.configuration = replace(host.configuration, listener=listener)
        host.answers["rabbitmqctl"] = ran
        (found,) = [one for one in host.findings() if one.subject == "broker.message_size"]
        assert found.level is Level.NOT_ASKED
        assert "rabbitmqctl --quiet eval" in found.advice
