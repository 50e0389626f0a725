"""systemd/install on a host by itself: again and again, a dry run, taken back; what is the administrator's stays."""

from collections.abc import Iterator

import pytest

from tests.lab import import_traps
from tests.lab.installed_machine import UNITS, USER, InstalledMachine

INSTALL = "/root/checkout/systemd/install"
COMMANDS = {
    "/usr/local/sbin/knime-root-helper": "helper.toml",
    "/usr/local/sbin/knime-broker-listener": "listener.toml",
}


@pytest.fixture
def machine(bare_host: InstalledMachine) -> Iterator[InstalledMachine]:
    """Give a host to which nothing is installed, and the checkout."""
    bare_host.copy_checkout()
    yield bare_host
    bare_host.end_executors()
    bare_host.run(INSTALL, "--uninstall", check=False)
    left = "/var/log/knime-peruser /var/lib/knime-peruser* /run/knime-peruser /srv/* /etc/knime-peruser"
    bare_host.run("sh", "-ec", f"rm -rf {left} /home/{USER}")


ON_DEBIAN_12 = pytest.mark.parametrize("bare_host", ["bookworm"], indirect=True)
"""For what the installer does by itself; the rest is tried on Debian 13, too."""


def _changes(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def test_it_says_what_is_missing_starts_nothing_and_what_it_installed_then_works(machine: InstalledMachine) -> None:
    said = machine.run(INSTALL).splitlines()
    missing = [line for line in said if line.startswith(("missing", "to do"))]
    assert [line for line in missing if "broker-password" in line or "executor-msgq" in line] == missing
    assert len(missing) == 2
    assert machine.states() == ["inactive", "inactive"]
    machine.give_credentials()
    assert not [line for line in machine.run(INSTALL).splitlines() if line.startswith(("missing", "to do"))]
    machine.run("systemctl", "enable", "--now", *UNITS)
    assert machine.states() == ["active", "active"]
    assert machine.ensure()["result"] == "started"


@ON_DEBIAN_12
def test_a_package_that_is_missing_is_named(machine: InstalledMachine) -> None:
    (module,) = (machine.root / "usr/lib/python3/dist-packages").glob("posix1e*.so")
    module.rename(module.with_name("away"))
    try:
        said = machine.run(INSTALL)
    finally:
        module.with_name("away").rename(module)
    assert "missing Python module posix1e: package python3-pylibacl" in said


@ON_DEBIAN_12
def test_a_dry_run_names_every_file_and_changes_nothing(machine: InstalledMachine) -> None:
    before = machine.files()
    said = machine.run(INSTALL, "--dry-run")
    assert machine.files() == before
    machine.run(INSTALL)
    installed = _changes(before, machine.files())
    for path in installed:
        is_file = (machine.root / path).is_file() and "__pycache__" not in path
        assert not is_file or f"/{path}" in said, path
    before = machine.files()
    said = machine.run(INSTALL, "--uninstall", "--dry-run")
    assert machine.files() == before
    assert "remove  /usr/local/sbin/knime-root-helper" in said
    assert "write" not in said


@ON_DEBIAN_12
def test_installing_again_changes_nothing_and_brings_a_newer_checkout_in(machine: InstalledMachine) -> None:
    old = machine.root / "root/checkout/protocol/old.py"
    old.write_text('"""An older version had this file."""\n', encoding="utf-8")
    machine.run(INSTALL)
    before = machine.files()
    assert not [line for line in machine.run(INSTALL).splitlines() if line.startswith("write")]
    assert _changes(before, machine.files()) == set()
    old.unlink()
    changed = machine.root / "root/checkout/protocol/names.py"
    changed.write_text(changed.read_text(encoding="utf-8") + "# newer\n", encoding="utf-8")
    machine.run(INSTALL)
    code = machine.root / "usr/local/lib/knime-peruser/protocol"
    assert not (code / "old.py").exists()
    assert (code / "names.py").read_text(encoding="utf-8").endswith("# newer\n")


def test_uninstalling_leaves_nothing_behind_where_nobody_has_added_anything(machine: InstalledMachine) -> None:
    before = machine.files()
    machine.run(INSTALL)
    machine.run(INSTALL, "--uninstall")
    assert _changes(before, machine.files()) == set()
    assert machine.status("test", "-e", "/run/knime-peruser") == 1
    assert "knime" not in machine.run("systemctl", "list-unit-files", "--no-legend", "knime*", check=False)


def test_uninstalling_ends_the_daemons_and_leaves_all_that_is_the_administrators_and_the_users(
    machine: InstalledMachine,
) -> None:
    machine.write("/etc/systemd/system/knime-root-helper.service.d/own.conf", "[Service]\nTimeoutStopSec=20\n")
    before = machine.files()
    machine.run(INSTALL)
    machine.give_credentials()
    machine.write("/etc/knime-peruser/helper.toml", "[limits]\nmax_executors = 7\n")
    machine.run("systemctl", "enable", "--now", *UNITS)
    executor = machine.ensure()["pid"]
    machine.run(INSTALL, "--uninstall")
    assert machine.status("pgrep", "-f", "/usr/local/sbin/knime-") == 1
    assert machine.runs(executor)
    kept = {path for path in _changes(before, machine.files()) if not path.startswith(f"home/{USER}/.")}
    machine.run("rm", "-r", "/etc/systemd/system/knime-root-helper.service.d")
    assert kept == {
        "etc/knime-peruser", "etc/knime-peruser/helper.toml",
        "etc/knime-peruser/broker-password", "etc/knime-peruser/executor-msgq",
        "var/log/knime-peruser", "var/log/knime-peruser/audit.jsonl",
        "srv/knime", "srv/knime/workspaces", f"srv/knime/workspaces/{USER}", "srv/knime/temp", f"srv/knime/temp/{USER}",
        f"home/{USER}",
    }  # fmt: skip
    machine.run(INSTALL)
    machine.run("systemctl", "start", *UNITS)
    assert [found["pid"] for found in machine.executors()] == [executor], "and adopted when it is installed again"


def test_an_administrators_own_configuration_is_neither_overwritten_nor_removed(machine: InstalledMachine) -> None:
    own = {"etc/pam.d/knime-peruser": "account required pam_unix.so\n", "etc/knime-peruser/listener.toml": "# mine\n"}
    for path, text in own.items():
        machine.write(path, text)
    machine.run(INSTALL)
    machine.run(INSTALL, "--uninstall")
    found = {path: (machine.root / path).read_text(encoding="utf-8") for path in own}
    (machine.root / "etc/pam.d/knime-peruser").unlink()
    assert found == own


def test_nothing_is_installed_below_a_directory_that_others_can_write(machine: InstalledMachine) -> None:
    before = machine.files()
    directory = machine.root / "usr/local/lib"
    directory.chmod(0o2775)
    try:
        said = machine.run(INSTALL, check=False)
        status = machine.status(INSTALL)
    finally:
        directory.chmod(0o755)
    assert status == 1
    assert "/usr/local/lib: mode 2775 lets others write it: chmod go-w /usr/local/lib" in said
    assert _changes(before, machine.files()) == set()


@ON_DEBIAN_12
def test_it_does_not_install_beside_the_package(machine: InstalledMachine) -> None:
    machine.apt("install", machine.build("0.0.1-1"))
    before = machine.files()
    said, status = machine.run(INSTALL, check=False), machine.status(INSTALL)
    after = machine.files()
    machine.run("dpkg", "--purge", "knime-peruser")
    assert (status, _changes(before, after)) == (1, set())
    assert "the package is installed" in said


def test_a_checkout_of_another_account_is_installed_as_roots_alone(machine: InstalledMachine) -> None:
    machine.run("chown", "-R", f"{USER}:{USER}", "/root/checkout")
    machine.run("sh", "-c", f"umask 0; exec {INSTALL}")
    found = "/usr/local/lib/knime-peruser", *COMMANDS, *(f"/usr/local/lib/systemd/system/{unit}" for unit in UNITS)
    assert machine.run("find", *found, "(", "-not", "-user", "root", "-o", "-perm", "/022", ")") == ""
    machine.run(INSTALL, "--uninstall")
    machine.run("sh", "-c", f"umask 077; exec {INSTALL}")
    unreadable = machine.run("setpriv", "--reuid=knime-listener", "--clear-groups", "find", *found, "-not", "-readable")
    assert unreadable == "", "whatever root's umask is"


def test_neither_launcher_imports_what_lies_about(machine: InstalledMachine) -> None:
    machine.run(INSTALL)
    machine.give_credentials()
    import_traps.lay_where_anybody_may(machine.root)
    laid = import_traps.lay_in_usr_local(machine.root)
    laid += import_traps.lay_beside(machine.root / "usr/local/sbin/knime-root-helper")
    environment = [f"{name}={value}" for name, value in import_traps.ENVIRONMENT.items()]
    try:
        for command, configuration in COMMANDS.items():
            check = [command, "--config", f"/etc/knime-peruser/{configuration}", "--check"]
            assert machine.status("env", "-C", import_traps.DIRECTORY, *environment, *check) == 0
    finally:
        for path in laid:
            path.unlink()
