"""Questions about KNIME's own configuration: knime.ini of the executors, and the server's load time-out.

What is said of KNIME's keys is what its predecessor's manual and KNIME's public sources say.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from broker_listener.operator.checks.finding import (
    Finding,
    Inputs,
    Question,
    fault,
    ini_values,
    not_asked,
    ok,
    open_to_others,
    warning,
)
from broker_listener.operator.checks.installation import AUTOSHUTDOWN

TEMP_DIR_LINE: Final = "/instance/org.knime.workbench.core/knime.tempDir=${env:KNIME_EXECUTOR_TEMP_DIR}"
"""A profile's line that puts each user's temporary files into the user's own directory."""
EXAMPLES: Final = "/usr/share/doc/knime-peruser/examples"
"""Where the package has what lies in etc/ here; systemd/install has it below /usr/local."""
MARGIN: Final = 15.0
"""Seconds of the server's time-out that are left for the job after an executor took all of ``start_timeout``."""


def profile(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether a profile puts temporary files into each user's own directory."""
    subject = "knime.profile"
    if (lines := _ini(inputs)) is None:
        yield _no_ini(inputs, subject)
        return
    before = lines[: lines.index("-vmargs")] if "-vmargs" in lines else lines
    location, names = _after(before, "-profileLocation"), _after(before, "-profileList")
    if location is None or names is None:
        late = [name for name in ("-profileLocation", "-profileList") if name in lines and name not in before]
        seen = f"{', '.join(late)}: after -vmargs, where they are not read" if late else "no profile is set"
        yield warning(
            subject,
            f"{_path(inputs)}: {seen}: temporary files of all users go to one /tmp",
            f"before -vmargs, one a line: -profileLocation /etc/knime-peruser/profiles -profileList per-user; and"
            f" cp -r {EXAMPLES}/profiles /etc/knime-peruser/, which holds the line {TEMP_DIR_LINE}",
        )
    elif "://" in location:
        yield ok(subject, f"profiles {names} from {location}, which each start of an executor then needs")
    else:
        yield from _local_profile(inputs, location, names)


def idle(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether the time is set after which KNIME's plug-in ends an idle executor."""
    subject, key = "knime.autoshutdown", "-Dcom.knime.executor.autoshutdown.delay_in_min"
    dropins = inputs.at(inputs.configuration.helper.executor.home) / "dropins"
    if (lines := _ini(inputs)) is None or not list(dropins.glob(f"{AUTOSHUTDOWN}*.jar")):
        yield not_asked(subject, "the auto-shutdown plug-in is not there, or knime.ini is not")
    elif values := _properties(lines, key):
        yield ok(subject, f"idle executors end after {values[-1]} minutes")
    else:
        yield warning(subject, f"{_path(inputs)}: {key} is not set", f"add {key}=30 after -vmargs")


def threads(inputs: Inputs) -> Iterator[Finding]:
    """Ask how many core tokens an executor takes, and all of them."""
    subject, key = "knime.threads", "-Dorg.knime.core.maxThreads"
    most = inputs.configuration.helper.limits.max_executors
    if (lines := _ini(inputs)) is None:
        yield _no_ini(inputs, subject)
    elif not (values := _properties(lines, key)) or not values[-1].isdigit():
        advice = f"add {key}=2 after -vmargs, or what the licence allows: 2 threads take 1 core token"
        yield warning(subject, f"{_path(inputs)}: {key} is not set: each executor takes threads for all cores", advice)
    else:
        tokens = -(-int(values[-1]) // 2)
        yield ok(subject, f"{tokens} core tokens an executor; limits.max_executors = {most} may take {tokens * most}")


def memory(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether the heap of all executors fits into the machine."""
    subject, most = "knime.memory", inputs.configuration.helper.limits.max_executors
    total = _total_memory(inputs)
    if (lines := _ini(inputs)) is None or not total:
        yield _no_ini(inputs, subject)
        return
    sizes = [_size(line.removeprefix("-Xmx")) for line in lines if line.startswith("-Xmx")]
    if not sizes or not sizes[-1]:
        yield warning(
            subject, f"{_path(inputs)}: -Xmx is not set: a quarter of the machine for each executor", "set it"
        )
        return
    heap, fit = sizes[-1], total // sizes[-1]
    seen = f"-Xmx of {heap >> 20} MiB, the machine has {total >> 20} MiB: {fit} executors fit"
    if not fit:
        yield fault(subject, seen, "lower -Xmx in knime.ini")
    elif most > fit:
        yield warning(
            subject, f"{seen}, limits.max_executors is {most}", f"lower -Xmx, or limits.max_executors to {fit}"
        )
    else:
        yield ok(subject, f"{seen}, limits.max_executors is {most}")


def load_timeout(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether KNIME Server waits longer for an executor than a start may take."""
    subject, key = "knime.load_timeout", "com.knime.server.job.default_load_timeout"
    if inputs.server_config is None:
        yield not_asked(subject, "KNIME Server's configuration is not here", "--server-config knime-server.config")
        return
    values = ini_values(inputs.server_config.read_text("utf-8", "replace"), key)
    seconds = _duration(values[-1]) if values else 60.0
    start = inputs.configuration.listener.hand_over.start_timeout
    if seconds is None:
        yield warning(subject, f"{key}={values[-1]} is no time that is understood here", "write it as 2m or 120s")
    elif seconds < start + MARGIN:
        seen = f"KNIME Server waits {seconds:.0f} s{'' if values else ' (its default)'}, a start may take {start:.0f} s"
        yield fault(subject, seen, f"{key}=2m in knime-server.config, or a lower hand_over.start_timeout")
    else:
        yield ok(subject, f"KNIME Server waits {seconds:.0f} s, a start may take {start:.0f} s")


def _local_profile(inputs: Inputs, location: str, names: str) -> Iterator[Finding]:
    subject = "knime.profile"
    home = inputs.configuration.helper.executor.home
    directory = inputs.at(os.path.join(home, location))  # noqa: PTH118 - an absolute location stays what it is
    files = [path for name in re.split(r"[,;:]", names) for path in sorted((directory / name).glob("*.epf"))]
    foreign = [path for path in (directory, *files) if path.exists() and open_to_others(path.stat())]
    if foreign:
        advice = f"chown -R root:root {location} && chmod -R go-w {location}"
        yield fault(subject, f"{foreign[0]} can be changed by others than root", advice)
    elif not any(TEMP_DIR_LINE in path.read_text("utf-8", "replace").splitlines() for path in files):
        seen = f"no *.epf of the profiles {names} in {directory} holds the line for the temporary directory"
        yield warning(subject, f"{seen}: temporary files of all users go to one /tmp", f"the line is {TEMP_DIR_LINE}")
    else:
        yield ok(subject, f"profiles {names} in {directory}")


def _path(inputs: Inputs) -> Path:
    return inputs.at(inputs.configuration.helper.executor.home) / "knime.ini"


def _ini(inputs: Inputs) -> list[str] | None:
    path = _path(inputs)
    return [line.strip() for line in path.read_text("utf-8", "replace").splitlines()] if path.is_file() else None


def _no_ini(inputs: Inputs, subject: str) -> Finding:
    return not_asked(subject, f"{_path(inputs)} is not there")


def _after(lines: list[str], name: str) -> str | None:
    return lines[lines.index(name) + 1] if name in lines[:-1] else None


def _properties(lines: list[str], key: str) -> list[str]:
    after = lines[lines.index("-vmargs") :] if "-vmargs" in lines else []
    return ini_values("\n".join(after), key)


def _total_memory(inputs: Inputs) -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", inputs.text("/proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmgt]?)", text.lower())
    return int(match[1]) * 1024 ** " kmgt".index(match[2] or " ") if match else 0


def _duration(text: str) -> float | None:
    match = re.fullmatch(r"(\d+)\s*(ms|s|m|h|d)", text.lower())
    return int(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[match[2]] if match else None


QUESTIONS: Final[tuple[Question, ...]] = (profile, idle, threads, memory, load_timeout)
