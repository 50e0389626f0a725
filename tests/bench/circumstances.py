"""What a run was measured on: processor, cores, load before, versions, commit. A figure without these says nothing."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
_GIT: Final = ("git", "-C", str(CHECKOUT), "-c", f"safe.directory={CHECKOUT}")


def circumstances() -> dict[str, str]:
    """Return them in the order in which they are shown; the load is that of before the first bench."""
    libraries = {name: version(name) for name in ("pika", "pyzmq")}
    return {
        "commit": commit(),
        "cpu": cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "load before": f"{load():.1f}",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        **libraries,
        "RabbitMQ": _output("dpkg-query", "--showformat=${Version}", "--show", "rabbitmq-server"),
    }


def load() -> float:
    """Return the machine's load of the last minute: other containers' processes count, too (proc(5))."""
    return os.getloadavg()[0]


def cpu() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """Return the commit of the checkout, marked where its files differ from it."""
    name = _output(*_GIT, "rev-parse", "--short=12", "HEAD")
    changed = _output(*_GIT, "status", "--porcelain", "--untracked-files=no")
    return f"{name}, changed" if changed and name != "unknown" else name


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
