"""Under its unit, who may look at the listener and what is seen: status for operators, metrics for everybody."""

import json

from tests.lab.booted_site import LISTENER, BootedSite

SOCKET = "/run/knime-peruser-listener/status.sock"
ASK = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{SOCKET}'); print(s.makefile().read())"
SCRAPE = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9469/metrics').read().decode())"


def as_user(site: BootedSite, user: str, program: str) -> str:
    return site.machine.run("runuser", "-u", user, "--", "/usr/bin/python3", "-c", program, check=False)


def test_status_is_for_root_and_members_of_the_group_and_metrics_for_everybody_without_a_user(site: BootedSite) -> None:
    (user,) = site.fresh_users(1)
    site.job(user)
    owner_group_mode = site.machine.run("stat", "-c", "%U %G %a", SOCKET).strip()
    assert owner_group_mode == "knime-listener knime-operators 660"
    told = json.loads(site.machine.run("/usr/bin/python3", "-c", ASK))
    assert told["connections"]["publish"]["state"] == "up"
    assert told["helper"]["state"] == "up"
    assert user in [one["user"] for one in told["users"]]
    assert "Permission denied" in as_user(site, "local1", ASK)
    site.machine.run("usermod", "-aG", "knime-operators", "local1")
    try:
        assert json.loads(as_user(site, "local1", ASK))["v"] == 1
    finally:
        site.machine.run("gpasswd", "-d", "local1", "knime-operators")
    page = as_user(site, "local1", SCRAPE)
    assert "knime_peruser_jobs_handed_over_total" in page
    assert user not in page


def test_it_has_the_groups_of_both_sockets_and_no_other(site: BootedSite) -> None:
    names = site.machine.run("ps", "-o", "group:32=,supgrp:64=", "-p", str(site.main_pid(LISTENER))).split()
    assert names[0] == "knime-operators"
    assert set(names[1].split(",")) <= {"knime-listener", "knime-operators"}
