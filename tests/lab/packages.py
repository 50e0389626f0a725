"""Packages of the distribution: install those that are missing, let none of their services start, now or at a boot.

apt is used with the machine's own settings. A policy-rc.d that is there already is left alone; where it would let
services start, nothing is installed. What an installation adds can be told beforehand, so that it can be undone.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

RUN_TIME: Final = (
    *("rabbitmq-server", "libpam-modules", "libpam-modules-bin"),
    *("python3-pika", "python3-zmq", "python3-psutil", "python3-pylibacl", "python3-prometheus-client"),
)
"""What the daemons and the simulated KNIME need, from the distribution alone."""

KERBEROS: Final = ("krb5-kdc", "krb5-admin-server", "krb5-user", "kstart")
"""What a test's own KDC needs, and the wrapper that gets an executor its ticket."""

POLICY: Final = Path("/usr/sbin/policy-rc.d")
_BUNDLE: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_SERVICES: Final = {
    "rabbitmq-server": ["rabbitmq-server.service"],
    "erlang-base": ["epmd.service", "epmd.socket"],
    "krb5-kdc": ["krb5-kdc.service"],
    "krb5-admin-server": ["krb5-admin-server.service"],
}


class PackagesError(Exception):
    """Packages cannot be installed here; the text says why and what to do."""


def missing(names: Sequence[str]) -> list[str]:
    """Give those of the packages that are not installed."""
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *names]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    installed = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def install(names: Sequence[str], noted: Callable[[str, str], None] = lambda _kind, _name: None) -> None:
    """Install packages; ``noted`` hears of each that is added, dependencies included, before anything changes.

    Raises:
        PackagesError: they cannot be installed; nothing of ours is left behind.
    """
    _update()
    added = _added(names)
    for name in added:
        noted("package", name)
    with _nothing_starts(noted), _own_certificates_kept(added):
        _apt("install", "--yes", "--no-install-recommends", *names)
        for name in added:
            for unit in _SERVICES.get(name, []):
                # The package enables its service; without this it would listen on all addresses after a reboot.
                _disable(name, unit)


def remove(names: Sequence[str]) -> None:
    """Remove packages with their configuration and data.

    Raises:
        PackagesError: others need them by now; all are left.
    """
    absent = set(missing(names)) if names else set()
    there = [name for name in names if name not in absent]
    if not there:
        return
    planned = _planned("Purg", _apt("purge", "--simulate", *there))
    if others := sorted(set(planned) - set(there)):
        raise PackagesError(f"{', '.join(others)} would go with them; nothing is removed")
    _apt("purge", "--yes", *there)


def _disable(package: str, unit: str) -> None:
    # As the package's own scripts do it, which works without systemd and lasts over upgrades of the package.
    environment = {**os.environ, "DPKG_MAINTSCRIPT_PACKAGE": package}
    subprocess.run(["deb-systemd-helper", "disable", unit], env=environment, check=False, capture_output=True)


def _added(names: Sequence[str]) -> list[str]:
    return _planned("Inst", _apt("install", "--simulate", "--no-install-recommends", *names))


def _planned(verb: str, simulation: str) -> list[str]:
    return [line.split()[1].partition(":")[0] for line in simulation.splitlines() if line.startswith(f"{verb} ")]


def _update() -> None:
    for attempt in range(12):
        try:
            _apt("update", "--quiet")
        except PackagesError as error:
            # The lists' lock has no time-out of apt's own: a machine that just booted updates them by itself.
            if "lists/lock" not in str(error) or attempt == 11:
                raise
            time.sleep(5)
        else:
            return


def _apt(*arguments: str) -> str:
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise PackagesError(
            "apt-get is not there: only Debian 12, 13 and Ubuntu 24.04 (not tried yet) are supported"
        ) from None
    if done.returncode:
        raise PackagesError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def _own_certificates_kept(added: list[str]) -> Iterator[None]:
    """Keep a bundle that was there before the package that makes one: pip's settings may name it."""
    own = _BUNDLE.read_bytes() if "ca-certificates" in added and _BUNDLE.exists() else None
    yield
    if own is not None:
        _BUNDLE.write_bytes(own)


@contextmanager
def _nothing_starts(noted: Callable[[str, str], None]) -> Iterator[None]:
    if POLICY.exists():
        allowed = subprocess.run([POLICY, "rabbitmq-server", "start"], capture_output=True, check=False)
        if allowed.returncode != 101:
            raise PackagesError(f"{POLICY} lets services start; move it away, or let it exit 101, and try again")
        yield
        return
    noted("file", str(POLICY))
    POLICY.write_text("#!/bin/sh\n# Of knime-peruser's lab, while it installs packages.\nexit 101\n", encoding="ascii")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
