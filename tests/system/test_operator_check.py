"""``check`` on a host as it is in life: units under systemd, users from SSSD, logind, real executors in scopes."""

import json
from pathlib import Path

from tests.lab.booted_site import HELPER, LISTENER, BootedSite
from tests.lab.ldap import ANALYSTS
from tests.lab.processes import wait_for

COMMAND = "/usr/bin/knime-peruser"
FOREIGN = "/etc/systemd/system/knime-executor.service"
PREDECESSOR = "/etc/systemd/system/knime-executor-per-user.service"
APPLICATION = "com.knime.enterprise.slave.KNIME_REMOTE_APPLICATION"


def answers(site: BootedSite) -> dict[str, tuple[str, str]]:
    """Give each subject's gravest level, and what was seen."""
    rank = ("not asked", "ok", "warning", "fault")
    found: dict[str, tuple[str, str]] = {}
    for one in json.loads(site.machine.run(COMMAND, "check", "--json", check=False))["findings"]:
        level = one["level"], one["seen"]
        found[one["subject"]] = max(found.get(one["subject"], level), level, key=lambda each: rank.index(each[0]))
    return found


def test_units_directory_and_executors_of_a_sound_host_are_well(site: BootedSite) -> None:
    user = site.fresh_users(1)[0]
    site.job(user)
    found = answers(site)
    well = ("host.units.knime-root-helper", "host.units.knime-broker-listener", "host.foreign_units", "host.sssd")
    for subject in (*well, "host.executors", "host.names", "host.groups", "daemons.helper", "broker.server"):
        assert found[subject][0] == "ok", (subject, found[subject])
    assert found["daemons.helper"][1].startswith("1 executors run")
    assert found["host.remove_ipc"][0] == "warning"


def test_a_unit_that_does_not_run_one_that_is_not_enabled_and_one_of_knime_are_named(site: BootedSite) -> None:
    start = f"/bin/sh -c 'sleep 1000; true' knime -application {APPLICATION}"
    site.machine.write(FOREIGN, f"[Service]\nExecStart={start}\n")
    try:
        site.systemctl("daemon-reload")
        site.systemctl("start", "knime-executor")
        site.systemctl("stop", LISTENER)
        site.systemctl("disable", HELPER)
        found = answers(site)
        assert found["host.foreign_units"][0] == "fault"
        assert found["host.executors"][0] == "fault"
        assert found["host.units.knime-broker-listener"][0] == "fault"
        assert found["host.units.knime-root-helper"][0] == "warning"
    finally:
        site.systemctl("stop", "knime-executor")
        site.machine.run("rm", FOREIGN)
        site.systemctl("daemon-reload")
        site.systemctl("enable", HELPER)


def test_a_unit_that_is_masked_and_a_predecessor_that_is_enabled_or_crashes_again_and_again_are_named(
    site: BootedSite,
) -> None:
    site.machine.write(PREDECESSOR, "[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=100\n[Install]\n")
    try:
        site.systemctl("stop", LISTENER)
        site.systemctl("mask", "--runtime", LISTENER)
        site.systemctl("start", Path(PREDECESSOR).name)
        found = answers(site)
        assert "is masked" in found["host.units.knime-broker-listener"][1]
        assert "is activating" in found["host.foreign_units"][1]
        site.systemctl("stop", Path(PREDECESSOR).name)
        assert answers(site)["host.foreign_units"][0] == "ok"
        site.machine.write(PREDECESSOR, "[Service]\nExecStart=/bin/false\n[Install]\nWantedBy=multi-user.target\n")
        site.systemctl("enable", Path(PREDECESSOR).name)
        assert "is inactive and enabled" in answers(site)["host.foreign_units"][1]
    finally:
        site.machine.run("systemctl", "disable", "--now", Path(PREDECESSOR).name)
        site.machine.run("rm", PREDECESSOR)
        site.systemctl("unmask", "--runtime", LISTENER)


def test_a_workspace_whose_owner_bears_another_name_now_is_named(site: BootedSite) -> None:
    """The uid is another name's now, and so is all that lies there: a fault."""
    user = site.fresh_users(1)[0]
    new = f"y{user[1:]}"
    site.end(site.job(user)["pid"])
    site.directory.rename(user, new)
    site.directory.forget_cached()
    level, seen = answers(site)["workspaces.owners"]
    site.machine.run("rm", "-r", f"/srv/knime/workspaces/{user}")
    assert level == "fault"
    assert f"/srv/knime/workspaces/{user}: nobody is called {user}, and {new} has uid" in seen


def test_a_directory_service_that_is_stopped_hangs_or_does_not_tell_whether_it_is_online_is_named(
    site: BootedSite,
) -> None:
    configuration = "/etc/sssd/sssd.conf"
    before = (site.machine.root / configuration.lstrip("/")).read_text()
    pids = [str(pid) for pid in site.pids_of("/usr/libexec/sssd/sssd_nss")]
    try:
        site.machine.run("kill", "-STOP", *pids)
        level, seen = answers(site)["host.names"]
        assert (level, "no answer in time" in seen) == ("fault", True), seen
        site.machine.run("kill", "-CONT", *pids)
        site.systemctl("stop", "sssd")
        assert answers(site)["host.sssd"] == ("fault", "SSSD is not running")
        assert site.show("sssd.service", "ActiveState") == "inactive"  # asking changed nothing
        site.machine.write(configuration, before.replace(", ifp", ""), 0o600)
        site.systemctl("mask", "--runtime", "sssd-ifp")  # D-Bus would start it
        site.systemctl("start", "sssd")
        wait_for(lambda: "InfoPipe is not there" in answers(site)["host.sssd"][1], 30, "SSSD without InfoPipe")
    finally:
        site.machine.write(configuration, before, 0o600)
        site.systemctl("unmask", "--runtime", "sssd-ifp")
        site.systemctl("restart", "sssd")


def test_a_group_name_that_means_one_gid_here_and_another_in_the_directory_is_named(site: BootedSite) -> None:
    name, gid = ANALYSTS
    site.configure_helper(users={"allow_groups": [name]})
    assert answers(site)["host.groups"][0] == "ok"
    local = site.machine.root / "etc/group"
    before = local.read_text()
    site.machine.write("/etc/group", f"{before}{name}:x:{gid + 500}:\n")
    try:
        level, seen = answers(site)["host.groups"]
        assert (level, f"{gid + 500}" in seen, f"{gid}" in seen) == ("fault", True, True)
    finally:
        site.machine.write("/etc/group", before)


def test_sssd_that_lost_its_directory_is_named(site: BootedSite) -> None:
    site.systemctl("stop", "slapd", "sssd")
    site.systemctl("start", "sssd")
    site.machine.status("getent", "passwd", site.fresh_users(1)[0])
    wait_for(lambda: answers(site)["host.sssd"][0] == "warning", 30, "the domain is offline, and check says so")


def test_logind_that_leaves_shared_memory_alone_is_well(site: BootedSite) -> None:
    path = "/etc/systemd/logind.conf.d/knime.conf"
    site.machine.write(path, "[Login]\nRemoveIPC=no\n")
    try:
        assert answers(site)["host.remove_ipc"][0] == "ok"
    finally:
        site.machine.run("rm", path)
