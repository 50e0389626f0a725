"""Questions about the host: who answers for names, what logind removes, the clock, the units, the versions."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import Final

from broker_listener.operator.checks.finding import (
    Finding,
    Inputs,
    Question,
    fault,
    ini_values,
    not_asked,
    ok,
    warning,
)
from broker_listener.operator.checks.processes import unit_states

SLOW: Final = 2.0
UNITS: Final = ("knime-root-helper.service", "knime-broker-listener.service")
SUPPORTED: Final = {("debian", "12"), ("debian", "13"), ("ubuntu", "24.04")}
UNTRIED: Final = {("ubuntu", "24.04")}
"""Of these, those on which nobody has run it yet."""
LIBRARIES: Final = {"pika": (1, 2), "pyzmq": (24,), "psutil": (5, 9), "click": (8, 1), "rich": (13,)}
_INFOPIPE: Final = "org.freedesktop.sssd.infopipe"


def names(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether the name service answers, also for a name that nobody has."""
    subject, begun, account = "host.names", monotonic(), inputs.configuration.helper.socket.listener_user
    ran = inputs.run(["getent", "passwd", account, "kpr-nobody-is-called-so"])
    seconds = monotonic() - begun
    if ran.status is None:
        yield fault(subject, f"no answer: {ran.output}", "time getent passwd NAME; every start waits for it")
    elif not ran.output.startswith(f"{account}:"):
        yield fault(subject, f"there is no account {account}", "systemd-sysusers, or install the package again")
    elif seconds > SLOW:
        yield warning(subject, f"an answer took {seconds:.1f} s", "time getent passwd NAME; every start waits for it")
    else:
        yield ok(subject, f"the name service answers in {1000 * seconds:.0f} ms")


def sssd(inputs: Inputs) -> Iterator[Finding]:
    """Ask, where users come from SSSD, whether its domains are online, and whether it says so."""
    subject = "host.sssd"
    if "sss" not in _sources(inputs, "passwd"):
        yield ok(subject, "users do not come from SSSD")
        return
    # First, since asking InfoPipe would have D-Bus start it, and with it an SSSD that somebody stopped.
    states = unit_states(inputs, ("sssd.service",))
    if states and states["sssd.service"]["ActiveState"] != "active":
        yield fault(subject, "SSSD is not running", "systemctl status sssd; jobs of users it knows are held")
        return
    listed = _infopipe(inputs, "/org/freedesktop/sssd/infopipe", _INFOPIPE, "ListDomains")
    if listed is None:
        advice = "install sssd-dbus and add ifp to `services` in sssd.conf: without it every unknown user is held"
        yield warning(subject, "SSSD does not say whether it is online: InfoPipe is not there", advice)
        return
    domains = re.findall(r'"([^"]+)"', listed)
    online = {name: _infopipe(inputs, name, f"{_INFOPIPE}.Domains.Domain", "IsOnline") for name in domains}
    if offline := [name.rpartition("/")[2] for name, said in online.items() if (said or "").split() != ["b", "true"]]:
        advice = "sssctl domain-status; jobs of users who are not in its cache are held until it is back"
        yield warning(subject, f"SSSD's domain {offline[0]} is offline", advice)
    else:
        yield ok(subject, f"SSSD is online, {len(domains)} domains")


def groups(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether each group name of the configuration means one gid, and those that must be there any."""
    subject, users = "host.groups", inputs.configuration.helper.users
    wanted = (*users.allow_groups, *users.deny_groups)
    gids: dict[str, set[str]] = {name: set() for name in wanted}
    sources = [name for name in _sources(inputs, "group") if name in {"files", "sss", "ldap", "winbind", "systemd"}]
    lines = (inputs.text("/etc/group") or "").splitlines()
    for source in sources:
        ran = inputs.run(["getent", "-s", source, "group", *wanted])
        if ran.status is None:
            yield not_asked(subject, f"{source} does not tell in time which groups there are")
            return
        lines += ran.output.splitlines()
    for fields in (line.split(":") for line in lines):
        if len(fields) >= 3 and fields[0] in gids:
            gids[fields[0]].add(fields[2])
    twice = {name: found for name, found in gids.items() if len(found) > 1}
    for name, found in twice.items():
        advice = "rename one of them: who is in which is decided by gid, and only the first is found by its name"
        yield fault(subject, f"group {name} means {len(found)} gids: {', '.join(sorted(found))}", advice)
    missing = [name for name in users.allow_groups if not gids[name]]
    for name in missing:
        advice = "make it, or take it out of users.allow_groups: until then jobs are held (lookup_timeout)"
        yield fault(subject, f"group {name} of users.allow_groups does not exist", advice)
    if not twice and not missing:
        yield ok(subject, "each group of the configuration means one gid, and those allowed exist")


def remove_ipc(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether logind leaves the shared memory of executors alone."""
    subject = "host.remove_ipc"
    logind = [inputs.at(f"{usr}/lib/systemd/systemd-logind") for usr in ("/usr", "")]
    if not any(path.exists() for path in logind):
        yield ok(subject, "there is no logind")
        return
    drop_ins = {
        path.name: path
        for directory in ("/usr/lib", "/run", "/etc")  # the later one's file of the same name counts, logind.conf(5)
        for path in sorted(inputs.at(f"{directory}/systemd/logind.conf.d").glob("*.conf"))
    }
    texts = [inputs.text("/etc/systemd/logind.conf") or ""]
    texts += [drop_ins[name].read_text("utf-8", "replace") for name in sorted(drop_ins)]
    said = [value for text in texts for value in ini_values(text, "RemoveIPC")]
    if said and said[-1].lower() in {"no", "false", "0", "off", "n", "f"}:
        yield ok(subject, "RemoveIPC=no")
    else:
        seen = "RemoveIPC=yes: a user's shared memory goes when the last login ends, also an executor's"
        advice = "RemoveIPC=no below [Login] in /etc/systemd/logind.conf.d/knime.conf, restart systemd-logind;"
        yield warning(subject, seen, f"{advice} or --accept {subject} where users of KNIME never log in here")


def clock(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether the clock is kept by somebody."""
    subject = "host.clock"
    ran = inputs.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if ran.status != 0:
        yield not_asked(subject, "timedatectl does not answer")
    elif ran.output.strip() == "yes":
        yield ok(subject, "synchronised")
    else:
        yield warning(
            subject, "the clock is not synchronised: the audit log's times mean little", "chrony or timesyncd"
        )


def units(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether both daemons are enabled and active."""
    states = unit_states(inputs, UNITS)
    if states is None:
        yield not_asked("host.units", "systemd does not answer")
        return
    for name, state in states.items():
        subject = f"host.units.{name.removesuffix('.service')}"
        if state["LoadState"] != "loaded":
            yield fault(subject, f"{name} is {state['LoadState']}", "install the package, or systemd/install")
        elif state["ActiveState"] != "active":
            yield fault(subject, f"{name} is {state['ActiveState']}", f"systemctl status {name}; journalctl -u {name}")
        elif state["UnitFileState"] != "enabled":
            yield warning(subject, f"{name} runs and is not enabled", f"systemctl enable {name}")
        else:
            yield ok(subject, f"{name} is active and enabled")


def versions(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether this is a supported system, with libraries that are new enough."""
    release = dict(line.partition("=")[::2] for line in (inputs.text("/etc/os-release") or "").splitlines())
    system = release.get("ID", "").strip('"'), release.get("VERSION_ID", "").strip('"')
    name, tested = " ".join(system).strip() or "unknown", "tested: Debian 12, 13; Ubuntu 24.04 (not tried yet)"
    if system in UNTRIED:
        yield warning("host.system", f"{name} is supported, and was not tried yet", tested)
    elif system in SUPPORTED:
        yield ok("host.system", name)
    else:
        yield warning("host.system", f"{name} is not tested", tested)
    old = [
        f"{name} {found}" for name, least in LIBRARIES.items() if (found := _installed(name)) and _older(found, least)
    ]
    if old:
        yield fault("host.libraries", f"too old: {', '.join(old)}", "install the distribution's packages")
    else:
        yield ok("host.libraries", f"Python {sys.version.split()[0]} and libraries are new enough")


def _sources(inputs: Inputs, database: str) -> list[str]:
    lines = (inputs.text("/etc/nsswitch.conf") or "").splitlines()
    words = [line.partition("#")[0].split() for line in lines if line.startswith(f"{database}:")]
    return [word for line in words for word in line[1:] if not word.startswith("[")]


def _infopipe(inputs: Inputs, path: str, interface: str, method: str) -> str | None:
    ran = inputs.run(["busctl", "--timeout=2", "call", _INFOPIPE, path, interface, method])
    return ran.output if ran.status == 0 else None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _older(found: str, least: tuple[int, ...]) -> bool:
    return tuple(int(number) for number in re.findall(r"\d+", found)[: len(least)]) < least


QUESTIONS: Final[tuple[Question, ...]] = (names, sssd, groups, remove_ipc, clock, units, versions)
