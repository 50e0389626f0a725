"""A machine with a real systemd: a pristine Debian, booted as a container, without a network but its own loopback.

What is real in it: units and their hardening, sd_notify, credentials, journald, scopes over D-Bus. What is not: the
controllers of cgroups on hosts that keep them in v1 hierarchies, so that limits are set and shown, not enforced.
Needs root, systemd-container and mmdebstrap. The image of a suite is built once a day and kept.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.lab.network import entered
from tests.lab.processes import wait_for

IMAGES: Final = Path("/var/cache/knime-peruser-tests/images")
MIRROR: Final = "http://deb.debian.org/debian"
PACKAGES: Final = (
    "systemd", "systemd-sysv", "dbus", "python3", "libpam-modules", "libpam-modules-bin", "libpam-systemd", "acl",
    "procps", "iproute2",
    "rabbitmq-server", "python3-pika", "python3-zmq", "python3-psutil", "python3-pylibacl",
    "python3-prometheus-client", "python3-click", "python3-rich",
    "slapd", "ldap-utils", "sssd-ldap", "sssd-dbus", "sssd-tools", "libnss-sss", "libpam-sss",
)  # fmt: skip
JAVA: Final = ("default-jre-headless", "librabbitmq-client-java")
"""For the one test whose executor is a Java program."""
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """One booted Debian; ``root`` is its file system, seen from outside."""

    def __init__(self, suite: str, directory: Path, packages: Sequence[str] = PACKAGES) -> None:
        self.suite, self._packages = suite, packages
        self.root = directory / "root"
        self._directory = directory
        self._log = directory / "boot.log"
        self._cgroups = directory / "cgroups"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def create(self) -> None:
        """Lay out the file system from the suite's image."""
        self.root.mkdir(parents=True)
        self._run("tar", "-C", str(self.root), "-xf", str(image(self.suite, self._packages)), "--exclude=./dev/*")
        (self.root / "etc/machine-id").unlink(missing_ok=True)
        self._run("systemd-machine-id-setup", f"--root={self.root}")

    def offline(self, *command: str) -> str:
        """Run a command in the file system before it is booted."""
        return self._run("systemd-nspawn", "-q", "-D", str(self.root), "--register=no", "--keep-unit", *command)

    def boot(self) -> None:
        """Boot, and wait until systemd says that it is up."""
        with self._log.open("ab") as log:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "--boot", "-D", str(self.root), f"--machine=kpr-{self._directory.name}"[:64],
                 "--register=no", "--private-network", "--keep-unit", "--link-journal=no"],
                env={"PATH": PATH, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, preexec_fn=self._enter_own_cgroup,  # noqa: PLW1509 - tests have one thread here
            )  # fmt: skip
        wait_for(self._find_init, 120, "the container's init")
        state = self.run("systemctl", "is-system-running", "--wait", check=False).strip()
        if state not in {"running", "degraded"}:
            raise RuntimeError(f"the machine is {state!r}: {self._log.read_text(errors='replace')[-2000:]}")

    def run(self, *command: str, check: bool = True, seconds: float = 120.0) -> str:
        """Run a command inside as root; give what it printed, errors included."""
        inside = ["nsenter", "-t", str(self._init), "-a", "-r", "-w", "env", "-i", f"PATH={PATH}", "LANG=C.UTF-8"]
        return self._run(*inside, *command, check=check, seconds=seconds)

    def status(self, *command: str) -> int:
        """Run a command inside; give its exit status."""
        inside = ["nsenter", "-t", str(self._init), "-a", "-r", "-w", "env", "-i", f"PATH={PATH}"]
        return subprocess.run([*inside, *command], capture_output=True, check=False, cwd="/").returncode

    @contextmanager
    def network(self) -> Iterator[None]:
        """Be in the machine's network while a connection is made; it stays there for as long as it lives."""
        with entered(Path(f"/proc/{self._init}/ns/net")):
            yield

    def cgroup(self, path: str) -> Path:
        """Give the directory of a cgroup of the machine, as the host sees it: with the host's pids."""
        return self._own_cgroup() / "payload" / path.lstrip("/")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the machine as root."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(mode)

    def journal(self, *arguments: str) -> list[dict[str, str]]:
        """Give journal entries, oldest first: journalctl(1)."""
        text = self.run("journalctl", "--no-pager", "-o", "json", *arguments)
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def reboot(self) -> None:
        """Power off and boot again."""
        self.power_off()
        self.boot()

    def power_off(self) -> None:
        """Shut down in good order; what is still there after that is killed by the pid that was started."""
        if self._nspawn is None:
            return
        with suppress(subprocess.SubprocessError):
            self.run("systemctl", "poweroff", check=False, seconds=20)
        with suppress(subprocess.TimeoutExpired):
            self._nspawn.wait(30)
        self._nspawn.kill()
        self._nspawn.wait()
        self._nspawn, self._init = None, 0

    def remove(self) -> None:
        """End it, which nothing in it needs to take note of, and delete everything."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            if self._init:
                os.kill(self._init, signal.SIGKILL)  # and with its init, all that is in it
                with suppress(subprocess.TimeoutExpired):
                    self._nspawn.wait(30)
            self._nspawn.kill()
            self._nspawn.wait()
        for _ in range(20):
            if not os.path.ismount(self._cgroups):
                break
            for directory in sorted(self._own_cgroup().rglob("*"), reverse=True):
                with suppress(OSError):
                    directory.rmdir()
            with suppress(OSError):
                self._own_cgroup().rmdir()
            if subprocess.run(["umount", str(self._cgroups)], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _own_cgroup(self) -> Path:
        return self._cgroups / f"kpr-{self._directory.name}"

    def _enter_own_cgroup(self) -> None:
        """Keep two containers of one host out of each other's cgroups; runs in the child, before systemd-nspawn."""
        self._cgroups.mkdir(exist_ok=True)
        if not os.path.ismount(self._cgroups):
            subprocess.run(["mount", "-t", "cgroup2", "cgroup2", str(self._cgroups)], check=True)
        self._own_cgroup().mkdir(exist_ok=True)
        (self._own_cgroup() / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    def _find_init(self) -> bool:
        if self._nspawn is None or self._nspawn.poll() is not None:
            raise RuntimeError(f"systemd-nspawn ended: {self._log.read_text(errors='replace')[-2000:]}")
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text(encoding="ascii")
        if not children.split():
            return False
        self._init = int(children.split()[0])
        return self.status("test", "-S", "/run/dbus/system_bus_socket") == 0

    def _run(self, *command: str, check: bool = True, seconds: float = 300.0) -> str:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            timeout=seconds, cwd="/",
        )  # fmt: skip
        output = done.stdout.decode("utf-8", "replace")
        if check and done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {output[-3000:]}")
        return output


def why_none_boots() -> str | None:
    """Say why no container can be booted here, None where one can."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = int(status.partition("\nCapEff:")[2].split(maxsplit=1)[0], 16)
    return None if held & 1 << _CAP_SYS_ADMIN else "no container can be booted here: CAP_SYS_ADMIN is missing"


_CAP_SYS_ADMIN: Final = 21


def image(suite: str, packages: Sequence[str] = PACKAGES) -> Path:
    """Give the suite's file system as a tar file, built where there is none of today."""
    wanted = hashlib.sha256(" ".join((suite, *packages)).encode()).hexdigest()[:12]
    path = IMAGES / f"{suite}-{wanted}.tar"
    if path.exists() and time.time() - path.stat().st_mtime < 86400:
        return path
    IMAGES.mkdir(parents=True, exist_ok=True)
    new = IMAGES / f".{os.getpid()}-{path.name}"  # mmdebstrap tells the format by the name's end
    include = f"--include={','.join(packages)}"
    with (IMAGES / f"{suite}.log").open("wb") as log:
        subprocess.run(
            ["mmdebstrap", "--variant=minbase", include, suite, str(new), MIRROR],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True,
        )  # fmt: skip
    new.rename(path)
    return path
