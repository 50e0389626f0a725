"""The quickstart on a host that systemd runs: the very units, executors in scopes, and nothing of it stays."""

import re
from collections.abc import Iterator

import pytest

from tests.lab.installed_machine import CHECKOUT, UNITS, InstalledMachine
from tests.lab.units import cgroup_of_executor

QUICKSTART = "/root/checkout/quickstart"
USERS = [f"kpr-demo-{name}" for name in ("alice", "bob", "carol")]
OWN_SETTINGS = {
    "knime-root-helper.service": ["ExecStart", "LoadCredential", "StateDirectory"],
    "knime-broker-listener.service": ["ExecStart", "LoadCredential", "RuntimeDirectory", "StateDirectory"],
}


@pytest.fixture
def machine(bare_host: InstalledMachine) -> Iterator[InstalledMachine]:
    """Give a host that has the packages, and no account of ours."""
    bare_host.copy_checkout()
    for command in ("userdel knime-listener", "userdel knime-gate", "groupdel knime-operators"):
        bare_host.run(*command.split(), check=False)
    yield bare_host
    bare_host.run(QUICKSTART, "--remove")


def test_it_runs_on_the_very_units_with_executors_in_scopes_and_takes_all_back(machine: InstalledMachine) -> None:
    before = _traces(machine)
    said = machine.run(QUICKSTART, "--keep")
    assert _states(machine) == ["active", "active"]
    for unit, own_settings in OWN_SETTINGS.items():
        fragment = machine.run("systemctl", "show", "--value", "-p", "FragmentPath", f"quickstart-{unit}").strip()
        shipped = (CHECKOUT / "systemd" / unit).read_text(encoding="utf-8")
        assert machine.run("cat", fragment).replace("quickstart-knime-", "knime-") == shipped
        drop_in = machine.run("cat", f"{fragment}.d/quickstart.conf")
        assert re.findall(r"^(\w+)=.+", drop_in, re.MULTILINE) == own_settings
        assert "/etc/knime-peruser" not in drop_in
    for user in USERS:
        assert f"{user}'s job runs in an executor of their own" in said
        assert f"  yes in a scope of its own, {cgroup_of_executor(user)}" in said
    listener = machine.main_pid("quickstart-knime-broker-listener.service")
    status = machine.run("cat", f"/proc/{listener}/status")
    assert "\nCapBnd:\t0000000000000000\n" in status
    assert "\nSeccomp:\t2\n" in status
    machine.run(QUICKSTART, "--remove")
    assert _traces(machine) ^ before == set()


@pytest.mark.parametrize("bare_host", ["bookworm"], indirect=True)
def test_without_keep_it_ends_with_0_and_leaves_nothing(machine: InstalledMachine) -> None:
    before = _traces(machine)
    assert machine.status(QUICKSTART) == 0
    assert _traces(machine) ^ before == set()


@pytest.mark.parametrize("bare_host", ["bookworm"], indirect=True)
def test_it_starts_nothing_where_executors_of_an_installation_run(machine: InstalledMachine) -> None:
    """An installation that was purged leaves them; the quickstart's helper would adopt them."""
    properties = ("--scope", "--slice=knime-executors.slice", "--unit=knime-executor-dave.scope")
    machine.run("sh", "-ec", f"systemd-run -q {' '.join(properties)} sleep infinity > /dev/null 2>&1 &")
    try:
        machine.run("timeout", "10", "sh", "-c", "until systemctl -q is-active knime-executor-dave.scope; do :; done")
        before = _traces(machine)
        assert machine.status(QUICKSTART) == 2
        assert "knime-executor-dave.scope" in machine.run(QUICKSTART, check=False)
        assert _traces(machine) ^ before == set()
    finally:
        machine.run("systemctl", "stop", "knime.slice")


@pytest.mark.parametrize("bare_host", ["bookworm"], indirect=True)
def test_a_unit_that_does_not_start_is_told_with_its_messages_and_taken_back(machine: InstalledMachine) -> None:
    unit = machine.root / "root/checkout/systemd/knime-broker-listener.service"
    unit.write_text(
        unit.read_text(encoding="utf-8").replace(
            "[Service]", "[Service]\nEnvironment=LANG=C\nExecStartPre=/bin/sh -c 'echo no way; exit 2'"
        ),
        encoding="utf-8",
    )
    before = _traces(machine)
    said = machine.run(QUICKSTART, check=False)
    assert "quickstart failed: quickstart-knime-broker-listener.service: " in said
    assert "no way" in said
    assert _traces(machine) ^ before == set()


@pytest.mark.parametrize("bare_host", ["bookworm"], indirect=True)
@pytest.mark.parametrize(
    ("make", "name"),
    [("user", "kpr-demo-alice"), ("group", "kpr-demo-analysts"), ("user", "kpr-demo-nobody-knows-me")],
    ids=["a user", "a group", "the unknown one"],
)
def test_names_that_nss_knows_are_left_alone(machine: InstalledMachine, make: str, name: str) -> None:
    """The demo users get other names, whoever has the usual ones: a directory may."""
    machine.run(f"{make}add", name)
    try:
        before = _traces(machine)
        said = machine.run(QUICKSTART)
        assert "kpr-demo2-alice's job runs in an executor of their own" in said
        assert "kpr-demo2-nobody-knows-me unknown_user" in " ".join(said.split())
        assert _traces(machine) ^ before == set()
    finally:
        machine.run(f"{make}del", name)


@pytest.mark.parametrize("bare_host", ["bookworm"], indirect=True)
def test_a_reader_that_goes_away_ends_it_and_all_is_taken_back(machine: InstalledMachine) -> None:
    """``./quickstart | head -3`` must not leave users, a broker or daemons behind, nor Python's words on stderr."""
    before = _traces(machine)
    said = machine.run("bash", "-c", f"set -o pipefail; {QUICKSTART} | head -3; echo status $?", seconds=240)
    assert said.splitlines()[3:] == ["status 141"]
    assert _traces(machine) ^ before == set()


def _states(machine: InstalledMachine) -> list[str]:
    return machine.run("systemctl", "is-active", *(f"quickstart-{unit}" for unit in UNITS), check=False).split()


def _traces(machine: InstalledMachine) -> set[str]:
    """Give all that a run could leave on the host; packages are installed already."""
    places = "/run/systemd/system /run/systemd/transient /run/credentials /tmp /var/tmp"
    commands = (
        "systemctl list-units --all --plain --no-legend '*knime*'",
        f"find {places} /run -maxdepth 1 -path '*knime*' 2> /dev/null",
        "cat /etc/passwd /etc/group /etc/subuid",
        "ps -e -o user= -o comm= | awk '$2 !~ /^(ps|awk|sh)$/'",
    )
    found = {f"{path} {what}" for path, what in machine.files().items()}
    lines = (line for command in commands for line in machine.run("sh", "-c", command, check=False).splitlines())
    # A unit that is gone is listed as not found for as long as something remembers it.
    return found | {" ".join(line.split()) for line in lines if " not-found " not in line}
