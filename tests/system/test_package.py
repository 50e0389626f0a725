"""The package in the life of a host, Debian 12 and 13: installed, upgraded at noon, removed, purged; out of reach.

Each test begins with a host that has never seen the package.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import import_traps, own_package
from tests.lab.installed_machine import UNITS, USER, InstalledMachine
from tests.lab.own_package import LOWER

HELPER, LISTENER = UNITS
THIS = own_package.version()
COMMANDS = {"knime-root-helper": "helper.toml", "knime-broker-listener": "listener.toml"}


@pytest.fixture
def machine(bare_host: InstalledMachine) -> Iterator[InstalledMachine]:
    yield bare_host
    bare_host.end_executors()
    bare_host.run("dpkg", "--purge", "knime-peruser")
    bare_host.run("sh", "-ec", f"rm -rf /var/log/knime-peruser /srv/* /run/knime-peruser /home/{USER}")


@pytest.fixture
def installed(machine: InstalledMachine) -> InstalledMachine:
    """Give a host with the package of a lower version and a configuration, nothing started."""
    machine.apt("install", machine.build(LOWER))
    machine.give_credentials()
    return machine


@pytest.fixture
def running(installed: InstalledMachine) -> InstalledMachine:
    """Give that host with both units enabled and started."""
    installed.run("systemctl", "enable", "--now", *UNITS)
    assert installed.states() == ["active", "active"]
    return installed


def test_a_first_installation_starts_and_enables_nothing_and_check_names_exactly_what_is_missing(
    machine: InstalledMachine,
) -> None:
    program = machine.root / "opt/knime/knime"
    program.rename(program.with_name("away"))
    machine.apt("install", machine.build(THIS))
    assert machine.states() == ["inactive", "inactive"]
    assert machine.run("systemctl", "is-enabled", *UNITS, check=False).split() == ["disabled", "disabled"]
    knime, credential = machine.check("knime-root-helper", "helper.toml")
    (password,) = machine.check("knime-broker-listener", "listener.toml")
    program.with_name("away").rename(program)
    assert "executor.home: /opt/knime/knime: " in knime
    assert "/etc/knime-peruser/executor-msgq: " in credential
    assert "/etc/knime-peruser/broker-password" in password


def test_with_what_check_named_both_units_start_and_a_user_gets_an_executor(running: InstalledMachine) -> None:
    assert [running.check(*command) for command in COMMANDS.items()] == [[], []]
    answer = running.ensure()
    assert (answer["result"], answer["os_user"]) == ("started", USER)


def test_an_upgrade_restarts_what_runs_and_the_executor_lives_on_and_is_adopted(running: InstalledMachine) -> None:
    helper_toml = running.root / "etc/knime-peruser/helper.toml"
    helper_toml.write_text("[limits]\nmax_executors = 7\n", encoding="utf-8")
    executor = running.ensure()["pid"]
    before = [running.main_pid(unit) for unit in UNITS]
    running.apt("install", running.build(THIS))
    after = [running.main_pid(unit) for unit in UNITS]
    assert running.states() == ["active", "active"]
    assert not {*before} & {*after}, "both are restarted"
    assert _started(running, HELPER) <= _started(running, LISTENER), "the helper first"
    assert running.runs(executor)
    assert [found["pid"] for found in running.executors()] == [executor]
    assert running.ensure()["result"] == "running"
    assert "max_executors = 7" in helper_toml.read_text(encoding="utf-8"), "the configuration is the administrator's"


def test_an_upgrade_leaves_stopped_what_an_administrator_has_stopped(running: InstalledMachine) -> None:
    running.run("systemctl", "stop", *UNITS)
    running.apt("install", running.build(THIS))
    assert running.states() == ["inactive", "inactive"]


def test_a_removal_ends_both_daemons_and_no_executor_and_what_is_installed_again_adopts_it(
    running: InstalledMachine,
) -> None:
    executor = running.ensure()["pid"]
    running.apt("remove", "knime-peruser")
    assert running.status("pgrep", "-f", "/usr/sbin/knime-") == 1
    assert running.runs(executor)
    assert not (running.root / "usr/lib/knime-peruser").exists(), "byte-code included"
    assert {path.name for path in (running.root / "etc/knime-peruser").iterdir()} == {
        *COMMANDS.values(),
        "broker-password",
        "executor-msgq",
    }
    running.apt("install", f"/root/knime-peruser_{LOWER}_all.deb")
    running.run("systemctl", "start", *UNITS)
    assert [found["pid"] for found in running.executors()] == [executor]


def test_a_purge_leaves_the_audit_log_the_accounts_and_what_users_own_and_nothing_else_of_ours(
    machine: InstalledMachine,
) -> None:
    before = machine.files()
    machine.apt("install", machine.build(THIS))
    machine.give_credentials()
    machine.run("systemctl", "enable", "--now", *UNITS)
    machine.ensure()
    (machine.root / "var/lib/knime-peruser/draining").touch()
    machine.end_executors()
    machine.apt("purge", "knime-peruser")
    after = machine.files()
    new = after.keys() - before.keys() - {"var/log/dpkg.log"}
    kept = {path for path in new if not path.startswith(f"home/{USER}/.")}
    assert kept == {
        "var/log/knime-peruser", "var/log/knime-peruser/audit.jsonl",
        "srv/knime", "srv/knime/workspaces", f"srv/knime/workspaces/{USER}", "srv/knime/temp", f"srv/knime/temp/{USER}",
        f"home/{USER}",
    }  # fmt: skip
    assert not before.keys() - after.keys(), "nothing of others is taken away"
    assert not [path for path, what in before.items() if after[path] != what], "or changed"
    for account in ("knime-listener", "knime-gate"):
        assert machine.status("getent", "passwd", account) == 0, "a uid of ours must not become somebody else's"
    assert machine.run("systemctl", "list-unit-files", "--no-legend", "knime*", check=False).strip() == ""


def test_no_other_account_can_write_what_root_runs(installed: InstalledMachine) -> None:
    paths = _loaded(installed) | set(installed.run("dpkg", "-L", "knime-peruser").split())
    paths |= set(installed.run("find", "/usr/lib/knime-peruser").split())
    paths |= set(installed.run("readlink", "-f", "/usr/bin/python3").split())
    paths |= {str(parent) for path in paths for parent in Path(path).parents}
    assert "/usr/lib/knime-peruser/protocol/__pycache__" in paths
    assert {"/usr/sbin", "/usr/lib/python3/dist-packages"} <= paths
    there = sorted(path for path in paths if path.startswith("/"))
    search = ("find", *there, "-maxdepth", "0", "-not", "-type", "l")
    assert installed.run(*search, "(", "-not", "-user", "root", "-o", "-perm", "/022", ")") == ""
    for account in (USER, "nobody", "knime-listener", "knime-gate"):
        become = ("setpriv", f"--reuid={account}", f"--regid={account if account != 'nobody' else 'nogroup'}")
        writable = installed.run(*become, "--init-groups", *search, "-writable", check=False)
        assert writable == "", account


def test_neither_daemon_imports_what_lies_in_its_working_directory_beside_it_or_where_its_environment_points(
    installed: InstalledMachine,
) -> None:
    import_traps.lay_where_anybody_may(installed.root)
    beside = import_traps.lay_beside(installed.root / "usr/sbin/knime-root-helper")
    environment = " ".join(f"{name}={value}" for name, value in import_traps.ENVIRONMENT.items())
    assert installed.status("env", "-C", import_traps.DIRECTORY, "python3", "-c", "import protocol") == (
        import_traps.SPRUNG
    ), "the traps work"
    for unit in UNITS:
        drop_in = f"[Service]\nWorkingDirectory={import_traps.DIRECTORY}\nEnvironment={environment}\n"
        installed.write(f"/etc/systemd/system/{unit}.d/trap.conf", drop_in)
    try:
        installed.run("systemctl", "daemon-reload")
        installed.run("systemctl", "start", *UNITS)
        assert installed.states() == ["active", "active"]
        assert installed.ensure()["result"] == "started"
        for command, configuration in COMMANDS.items():
            assert _checked(installed, command, configuration) == 0
    finally:
        installed.run("rm", "-r", *(f"/etc/systemd/system/{unit}.d" for unit in UNITS))
        for path in beside:
            path.unlink()


def test_neither_launcher_runs_what_lies_in_the_site_directories_of_usr_local(installed: InstalledMachine) -> None:
    laid = import_traps.lay_in_usr_local(installed.root)
    try:
        assert installed.status("python3", "-I", "-c", "pass") == import_traps.SPRUNG, "the traps work"
        for command, configuration in COMMANDS.items():
            assert _checked(installed, command, configuration) == 0
    finally:
        for path in laid:
            path.unlink()


def _checked(machine: InstalledMachine, command: str, configuration: str) -> int:
    environment = [f"{name}={value}" for name, value in import_traps.ENVIRONMENT.items()]
    check = [command, "--config", f"/etc/knime-peruser/{configuration}", "--check"]
    return machine.status("env", "-C", "/", *environment, *check)


def _started(machine: InstalledMachine, unit: str) -> int:
    """Give when a unit was started, in microseconds since boot."""
    return int(machine.run("systemctl", "show", "--value", "-p", "ExecMainStartTimestampMonotonic", unit))


def _loaded(machine: InstalledMachine) -> set[str]:
    """Give the files of all modules that the root helper loads: python3 -v names them."""
    trace = machine.run("/usr/bin/python3", "-ISv", "/usr/sbin/knime-root-helper", "--help")
    return set(re.findall(r"(?:matches|loaded from|executed from) '?(/[^'\s]+\.(?:py|so))", trace))
