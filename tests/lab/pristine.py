"""A pristine Debian to run a command of the README in: what a new user has, and no more.

The root file system holds the distribution's smallest set of packages, python3 and a copy of the checkout's files. A
command in it is PID 1, so nobody reaps what it leaves; there is no systemd and no terminal, and the capabilities are
those that Docker gives by default. It shares this machine's network, apt's and pip's settings and certificates.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.lab.machine import MIRROR

DOCKER_DROPS: Final = (
    "AUDIT_CONTROL", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH", "IPC_LOCK", "IPC_OWNER", "LEASE",
    "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "NET_ADMIN", "NET_BROADCAST", "PERFMON", "SYS_ADMIN", "SYS_BOOT",
    "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG",
    "SYSLOG", "WAKE_ALARM",
)  # fmt: skip
"""Every capability that Docker does not give by default (docs.docker.com/engine/security)."""
_SETTINGS: Final = ("etc/apt/apt.conf.d", "etc/pip.conf", "etc/ssl/certs")
_WHERE: Final = "/srv/knime-peruser"


class PristineRoot:
    """One root file system; whoever gave the directory deletes it."""

    def __init__(self, suite: str, directory: Path) -> None:
        self._suite, self._directory = suite, directory

    def create(self, checkout: Path) -> None:
        """Make it, and copy into it the files of the checkout that git knows, as they are now.

        Raises:
            subprocess.CalledProcessError: mmdebstrap or git failed; what it said went to stderr.
        """
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates,python3"]
        subprocess.run([*command, self._suite, str(self._directory), MIRROR], stdin=subprocess.DEVNULL, check=True)
        for setting in _SETTINGS:
            self._copy_setting(setting)
        for name in _files_of(checkout):
            target = self._directory / _WHERE.lstrip("/") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, target, follow_symlinks=False)

    def run(self, *command: str, minutes: float) -> int:
        """Run a command in the checkout's copy; return its exit status, 124 if it did not end in time."""
        drops = ",".join(f"CAP_{name}" for name in DOCKER_DROPS)
        nspawn = ["systemd-nspawn", "--quiet", "--console=pipe", "--register=no", "--keep-unit", "--link-journal=no"]
        inside = ["--resolv-conf=copy-host", f"--drop-capability={drops}", f"--chdir={_WHERE}"]
        environment = ["env", "DEBIAN_FRONTEND=noninteractive", "LANG=C.UTF-8"]
        full = [*nspawn, *inside, "-D", str(self._directory), *environment, *command]
        process = subprocess.Popen(full, stdin=subprocess.DEVNULL)
        try:
            return process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            process.kill()  # with it goes its PID namespace
            process.wait()

    def _copy_setting(self, name: str) -> None:
        """Copy a file or directory of this machine; nothing is written through a link of the new root."""
        source, target = Path("/", name), self._directory / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            # A container's own apt settings (docker-clean and others) are about its image.
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("docker-*"), ignore_dangling_symlinks=True)
        elif source.exists():
            target.unlink(missing_ok=True)
            shutil.copyfile(source, target)


def _files_of(checkout: Path) -> Sequence[str]:
    git = ["git", "-C", str(checkout), "-c", f"safe.directory={checkout}"]
    listed = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and (checkout / name).exists()]
