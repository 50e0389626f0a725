"""What this machine allows, found out once by trying it: a test that needs more is skipped and says what is missing.

A container often has no way to mount, to make namespaces or to trace, and a newcomer is not root. A test names what it
needs: ``@pytest.mark.needs("mount")``. What is a package is no right: tests/run installs it.
"""

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.lab.kernel_events import KernelEvents, NotToBeHad

CHECKOUT: Final = Path(__file__).resolve().parents[2]

_CLONE_NEWTIME: Final = 0x80
_PR_CAPBSET_READ: Final = 23
_CAP_SYS_ADMIN: Final = 21
_PTRACE_SEIZE: Final = 0x4206
_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_ANSWER: Final = "KNIME_PERUSER_TESTS_LACKING"
_WITHOUT_ROOT: Final = ("root", "IPv6")


def lacking() -> Mapping[str, str]:
    """Return the rights that this machine does not give, each with the reason.

    They are tried once, by a process of their own: some are tried after a fork, which a process with threads must not
    do. Processes started later read the answer from the environment.
    """
    if _ANSWER not in os.environ:
        asked = [sys.executable, "-m", "tests.lab.rights"]
        os.environ[_ANSWER] = subprocess.run(asked, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True).stdout
    answer: dict[str, str] = json.loads(os.environ[_ANSWER])
    return answer


def main() -> None:
    """Try every right and print those that are lacking as JSON."""
    print(json.dumps({right: why for right in RIGHTS if (why := _why_lacking(right))}))


def _why_lacking(right: str) -> str | None:
    try:
        if right not in _WITHOUT_ROOT:
            _root()
        RIGHTS[right]()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _root() -> None:
    if os.geteuid() != 0:
        raise PermissionError(errno.EPERM, "not root")


def _mount() -> None:
    with tempfile.TemporaryDirectory() as place:
        _tried("mount", "-t", "tmpfs", "none", place)
        _tried("umount", place)


def _loop_device() -> None:
    with tempfile.TemporaryDirectory() as place:
        image, directory = Path(place, "image"), Path(place, "mounted")
        image.write_bytes(bytes(1 << 20))
        directory.mkdir()
        _tried("mkfs.ext4", "-q", "-F", str(image))
        _tried("mount", "-o", "loop", str(image), str(directory))
        _tried("umount", str(directory))


def _mount_namespace() -> None:
    _tried("unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt")


def _network_namespace() -> None:
    _tried("unshare", "--net", "true")


def _pid_namespace() -> None:
    _tried("unshare", "--pid", "--fork", "--mount-proc", "true")


def _time_namespace() -> None:
    _tried("unshare", "--time", "true")


def _trace() -> None:
    """Trace a process of another user, and see where its /proc/PID/exe leads (ptrace(2))."""
    held, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        os.close(end)
        os.read(held, 1)
        os._exit(0)
    try:
        while os.stat(f"/proc/{child}/task").st_uid == 0:  # noqa: PTH116 - until it has changed its uid
            pass
        os.readlink(f"/proc/{child}/fd/{held}")  # noqa: PTH115 - the right is the question
        if ctypes.CDLL(None, use_errno=True).ptrace(_PTRACE_SEIZE, child, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(end)
        os.close(held)
        os.waitpid(child, 0)


def _keyring() -> None:
    """Join a session keyring (keyctl(2)), in a child that keeps it for itself."""
    child = os.fork()
    if child == 0:
        number = _KEYCTL.get(os.uname().machine)
        joined = ctypes.CDLL(None).syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) if number else -1
        os._exit(0 if joined >= 0 else 1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise PermissionError(errno.EPERM, "keyctl(2) is not permitted")


def _process_events() -> None:
    try:
        KernelEvents().stop()
    except NotToBeHad as error:
        raise OSError(errno.EPERM, str(error)) from None


def _cgroup2() -> None:
    with tempfile.TemporaryDirectory() as place:
        _tried("mount", "-t", "cgroup2", "none", place)
        _tried("umount", place)


def _freezer() -> None:
    with tempfile.TemporaryDirectory() as place:
        _tried("mount", "-t", "cgroup", "-o", "freezer", "none", place)
        _tried("umount", place)


def _container() -> None:
    if ctypes.CDLL(None).prctl(_PR_CAPBSET_READ, _CAP_SYS_ADMIN) != 1:
        raise PermissionError(errno.EPERM, "CAP_SYS_ADMIN is missing")


def _ipv6() -> None:
    with socket.socket(socket.AF_INET6) as one:
        one.bind(("::1", 0))


RIGHTS: Final[Mapping[str, Callable[[], None]]] = MappingProxyType(
    {
        "root": _root,
        "mount": _mount,
        "mount namespace": _mount_namespace,
        "loop device": _loop_device,
        "network namespace": _network_namespace,
        "pid namespace": _pid_namespace,
        "time namespace": _time_namespace,
        "trace": _trace,
        "keyring": _keyring,
        "process events": _process_events,
        "cgroup2": _cgroup2,
        "freezer": _freezer,
        "container": _container,
        "IPv6": _ipv6,
    }
)


def _tried(*command: str) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"{command[0]} is not installed") from None
    if done.returncode:
        raise PermissionError(errno.EPERM, (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[0])


if __name__ == "__main__":
    main()
