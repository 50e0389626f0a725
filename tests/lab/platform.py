"""What this host is: a supported distribution or not, and whether a broker runs on it already."""

from contextlib import suppress
from pathlib import Path
from typing import Final

SUPPORTED: Final = {("debian", "12"), ("debian", "13"), ("ubuntu", "24.04")}
UNTRIED: Final = {("ubuntu", "24.04")}
"""Of these, those on which nobody has run it yet."""
IN_WORDS: Final = "Debian 12, Debian 13 and Ubuntu 24.04 (not tried yet)"


def unsupported(os_release: Path = Path("/etc/os-release")) -> str | None:
    """Say why this distribution is not one that is supported, or None where it is."""
    name, system = _system(os_release)
    return None if system in SUPPORTED else f"{name} is not supported; {IN_WORDS} are"


def untried(os_release: Path = Path("/etc/os-release")) -> str | None:
    """Say that this distribution is one that was not tried yet, or None if it was."""
    name, system = _system(os_release)
    return f"{name}: not tried yet; what fails here is worth a report" if system in UNTRIED else None


def _system(os_release: Path) -> tuple[str, tuple[str, str]]:
    """Return a distribution's name for people, and its id with its version (os-release(5))."""
    entries: dict[str, str] = {}
    with suppress(OSError):
        lines = os_release.read_text(encoding="utf-8").splitlines()
        entries = {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines)}
    return entries.get("PRETTY_NAME", "this system"), (entries.get("ID", ""), entries.get("VERSION_ID", ""))


def broker_is_running() -> bool:
    """Say whether something listens on AMQP's port, on any address (proc_net_tcp.txt of the kernel)."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with suppress(OSError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state = line.split()[:4]
                if state == "0A" and int(local.rpartition(":")[2], 16) == 5672:
                    return True
    return False
