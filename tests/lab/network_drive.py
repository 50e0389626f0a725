"""A network drive for a booted machine: a file server on its loopback and real mounts of it, made in three ways.

The kernels that tests run on have no NFS, so it is GlusterFS: a server in user space, a client behind the kernel's
FUSE, every request over TCP with the caller's uid and groups, and root squashed as an NFS export does by default. The
machine needs the packages ``DRIVE_PACKAGES``.
"""

from collections.abc import Iterator
from typing import Final

from tests.lab.machine import Machine
from tests.lab.processes import wait_for

DRIVE_PACKAGES: Final = ("glusterfs-client", "autofs")
KINDS: Final = ("mounted", "systemd", "autofs")
"""How a drive is mounted: at once, on demand by a systemd.automount(5), on demand by automount(8)."""
SERVER: Final = "lab-file-server.service"
IDLE: Final = 1
"""Seconds without use after which what is mounted on demand is unmounted."""
_EXPORTED: Final = "/srv/exported"
_DEVICES: Final = {"/dev/fuse": (10, 229, 0o666), "/dev/autofs": (10, 235, 0o600)}


class NetworkDrive:
    """One exported directory, which everybody may write; ``exported`` is where the server has it."""

    exported: Final = _EXPORTED

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._made: list[tuple[str, str]] = []

    def export(self) -> None:
        """Start the file server."""
        for device, (major, minor, mode) in _DEVICES.items():
            self._machine.run("sh", "-c", f"test -e {device} || mknod -m {mode:o} {device} c {major} {minor}")
        self._machine.write("/etc/glusterfs/lab-server.vol", _SERVER)
        self._machine.write("/etc/glusterfs/lab-client.vol", _CLIENT)
        self._machine.run("install", "-d", "-m", "1777", _EXPORTED)
        self._machine.run("systemctl", "daemon-reexec")  # systemd looks for /dev/autofs once, and so does automount
        self._machine.run("systemctl", "restart", "autofs")
        self._machine.run("systemd-run", "-q", "--collect", "--unit", SERVER, "glusterfsd", "-N", "-f", _SERVER_FILE)
        wait_for(lambda: ":24007" in self._machine.run("ss", "-Hltn"), 10, "the file server")

    def mount(self, name: str, kind: str) -> str:
        """Have the drive below a path, now or on demand; give the path."""
        path = f"/srv/drive-{name}"
        self._made.append((name, kind))
        self._machine.run("mkdir", "-p", path)
        if kind == "mounted":
            self._machine.run("mount", "-t", "glusterfs", _CLIENT_FILE, path)
        elif kind == "systemd":
            self._unit(path, "mount", f"[Mount]\nWhat={_CLIENT_FILE}\nWhere={path}\nType=glusterfs\n")
            self._unit(path, "automount", f"[Automount]\nWhere={path}\nTimeoutIdleSec={IDLE}\n")
            self._machine.run("systemctl", "daemon-reload")
            self._machine.run("systemctl", "start", f"{_unit_name(path)}.automount")
        else:
            self._machine.write(f"/etc/auto.master.d/{name}.autofs", f"/- /etc/auto.{name} --timeout={IDLE}\n")
            self._machine.write(f"/etc/auto.{name}", f"{path} -fstype=glusterfs :{_CLIENT_FILE}\n")
            self._machine.run("systemctl", "restart", "autofs")  # 5.1.8 dies when it reloads a direct map
            wait_for(lambda: f" {path} autofs " in self._machine.run("cat", "/proc/mounts"), 10, f"autofs at {path}")
        return path

    def is_mounted(self, path: str) -> bool:
        """Say whether the drive is there, without asking for it."""
        return f" {path} fuse.glusterfs " in self._machine.run("cat", "/proc/mounts")

    def server_pids(self) -> list[str]:
        """Give the pids, inside, of the file server."""
        return [self._machine.run("systemctl", "show", "--value", "-p", "MainPID", SERVER).strip()]

    def remove(self) -> None:
        """Take every mount away, then the server and what it exported."""
        for name, kind in reversed(self._made):
            path = f"/srv/drive-{name}"
            if kind == "systemd":
                self._machine.run("systemctl", "stop", f"{_unit_name(path)}.automount", check=False)
                self._machine.run("sh", "-c", f"rm -f /etc/systemd/system/{_unit_name(path)}.*mount")
            elif kind == "autofs":
                self._machine.run("rm", "-f", f"/etc/auto.master.d/{name}.autofs", f"/etc/auto.{name}")
        self._machine.run("systemctl", "reload", "autofs", check=False)
        for name, _ in reversed(self._made):
            self._machine.run("umount", "-l", f"/srv/drive-{name}", check=False)
        self._machine.run("systemctl", "stop", SERVER, check=False)
        self._machine.run("systemctl", "daemon-reload")
        self._machine.run("rm", "-rf", _EXPORTED)

    def _unit(self, path: str, suffix: str, text: str) -> None:
        self._machine.write(f"/etc/systemd/system/{_unit_name(path)}.{suffix}", text)


def network_drive(machine: Machine) -> Iterator[NetworkDrive]:
    """Give an exported drive for a fixture, and take it away again."""
    drive = NetworkDrive(machine)
    try:
        drive.export()
        yield drive
    finally:
        drive.remove()


def _unit_name(path: str) -> str:
    """Give the name of a path's mount units: systemd-escape(1)."""
    return path.strip("/").replace("-", r"\x2d").replace("/", "-")


_SERVER_FILE: Final = "/etc/glusterfs/lab-server.vol"
_CLIENT_FILE: Final = "/etc/glusterfs/lab-client.vol"
_SERVER: Final = f"""\
volume disk
  type storage/posix
  option directory {_EXPORTED}
end-volume
volume drive
  type features/locks
  subvolumes disk
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.socket.bind-address 127.0.0.1
  option transport.socket.listen-port 24007
  option auth.addr.drive.allow 127.0.0.1
  option root-squash on
  subvolumes drive
end-volume
"""
_CLIENT: Final = """\
volume client
  type protocol/client
  option transport-type tcp
  option remote-host 127.0.0.1
  option remote-port 24007
  option remote-subvolume drive
end-volume
"""
