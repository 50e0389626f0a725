"""Calls on the system bus, through busctl(1): by its absolute path, without a shell, with an empty environment.

It trusts PID 1, SSSD and the bus between. A new process a call keeps no connection that a restart of D-Bus would
break; it is called in a worker, never in the supervisor, which must not wait.
"""

import json
import subprocess
from typing import Final

_BUSCTL: Final = "/usr/bin/busctl"


class BusError(Exception):
    """The call was not answered, or with an error; the text is busctl's, cut."""


def call(timeout: float, *words: str) -> list[object]:
    """Call a method and give what it returned; ``words`` as busctl call takes them, ``timeout`` in seconds.

    Raises:
        BusError: there was no answer in time, or an error.
    """
    try:
        # PRIVILEGED: uid 0 on the system bus may start units; what is called is written in scope.py and sssd.py alone.
        done = subprocess.run(  # noqa: S603  a fixed program, arguments of our own making, no shell
            [_BUSCTL, "--system", "--json=short", "call", *words],
            env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BusError(done.stderr.decode("ascii", "backslashreplace").strip()[:200] or "refused")
        return list(json.loads(done.stdout)["data"])
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError) as error:
        raise BusError(f"busctl: {error}") from error
