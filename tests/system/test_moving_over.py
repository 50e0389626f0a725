"""Moving over from the predecessor and back, on a host that systemd runs, with the commands that are printed."""

import json
from collections.abc import Iterator

import pytest

from tests.lab.booted_site import HELPER, LISTENER, SLICE, BootedSite
from tests.lab.ldap import uid
from tests.lab.processes import wait_for

HOME, PARENT = "/opt/knime", "/srv/old/workspaces"
UNIT = "knime-executor-per-user.service"
STARTER = f"{HOME}/knime_executor_per_user_starter.py"
OLD = f"{HOME}/knime_executor_per_user_starter.config"
SERVICE = f"""\
[Service]
ExecStart=/usr/bin/python3 {STARTER} {OLD}
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture
def before(site: BootedSite) -> Iterator[BootedSite]:
    """Give a host that the predecessor serves: enabled, running, its workspaces open to everybody; ours are off."""
    site.systemctl("disable", "--now", LISTENER, HELPER)
    account = site._server_account
    configuration = {
        "rabbitmq_host_name": "127.0.0.1",
        "rabbitmq_virtual_host": "/",
        "rabbitmq_client_user": account.name,
        "rabbitmq_client_password": account.password,
        "knime_home": HOME,
        "knime_workspace_parent_folder": PARENT,
    }
    site.machine.write(OLD, json.dumps(configuration))
    site.machine.write(STARTER, "import time\ntime.sleep(100000)\n")
    site.machine.write(f"/etc/systemd/system/{UNIT}", SERVICE)
    site.machine.run("install", "-d", "-m", "0777", PARENT)
    site.systemctl("daemon-reload")
    site.systemctl("enable", "--now", UNIT)
    yield site
    site.machine.run("systemctl", "disable", "--now", UNIT)
    site.machine.run("rm", "-rf", f"/etc/systemd/system/{UNIT}", "/srv/old", STARTER, OLD, "/root/names")
    site.machine.run("sh", "-c", "rm -f /etc/knime-peruser/*.before-import")
    site.systemctl("daemon-reload")
    site.systemctl("enable", LISTENER, HELPER)


def faults(site: BootedSite) -> set[str]:
    found = json.loads(site.machine.run("knime-peruser", "check", "--json", check=False))["findings"]
    return {one["subject"] for one in found if one["level"] == "fault"}


def test_a_host_of_the_predecessor_moves_over_as_it_is_told_and_back(before: BootedSite) -> None:
    site, (user,) = before, before.fresh_users(1)
    spelled = user.capitalize()
    workspace = f"{PARENT}/{user}"
    site.machine.run("install", "-d", "-m", "0700", "-o", f"{uid(user)}", "-g", "root", workspace)
    site.machine.write(f"{workspace}/kept", "the user's own")
    assert {"host.executors", "host.foreign_units"} <= faults(site)

    site.machine.write("/root/names", f"{spelled}\n")
    words = ("import-config", "--force", "--json", "--user-names", "/root/names", OLD)
    for command, _ in json.loads(site.machine.run("knime-peruser", *words))["commands"]:
        site.machine.run("sh", "-ec", command)
    site.systemctl("enable", "--now", "knime-root-helper", "knime-broker-listener")
    site.wait_until_served()
    report = site.jobs_of([spelled], report="full")[spelled]
    assert (report["uid"], report["cwd"]) == (uid(user), workspace)
    assert faults(site) == {"broker.executors"}, "the predecessor had one account for both, and check says so"

    for command in (("disable", "--now", "knime-broker-listener", "knime-root-helper"), ("stop", SLICE)):
        site.systemctl(*command)
    wait_for(lambda: not site.executors(), 20, "the end of the executors")
    site.systemctl("enable", "--now", UNIT)
    assert site.show(UNIT, "ActiveState") == "active"
    assert site.machine.run("stat", "-c", "%u %a", workspace).split() == [f"{uid(user)}", "700"]
    assert site.machine.run("cat", f"{workspace}/kept") == "the user's own"
