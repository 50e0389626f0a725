"""What this host is: a supported distribution or not, and whether a broker runs on it already."""

from contextlib import suppress
from pathlib import Path
from typing import Final

SUPPORTED: Final = {("debian", "12"), ("debian", "13"), ("ubuntu", "24.04")}


def unsupported(os_release: Path = Path("/etc/os-release")) -> str | None:
    """Say why this distribution is not one that is supported, or None where it is."""
    entries: dict[str, str] = {}
    with suppress(OSError):
        lines = os_release.read_text(encoding="utf-8").splitlines()
        entries = {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines)}
    if (entries.get("ID", ""), entries.get("VERSION_ID", "")) in SUPPORTED:
        return None
    return f"{entries.get('PRETTY_NAME', 'this system')} is not supported: Debian 12, Debian 13 and Ubuntu 24.04 are"


def broker_is_running() -> bool:
    """Say whether something listens on AMQP's port, on any address (proc_net_tcp.txt of the kernel)."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with suppress(OSError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state = line.split()[:4]
                if state == "0A" and int(local.rpartition(":")[2], 16) == 5672:
                    return True
    return False
