"""From boot to a user's first job: uid, groups, home, workspace, cgroup, journal; limits; many at once."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab.access import acls
from tests.lab.booted_site import HELPER, BootedSite
from tests.lab.ldap import ANALYSTS, EVERYBODY, uid
from tests.lab.processes import wait_for


@pytest.mark.both_debians
def test_from_boot_to_the_first_job_of_a_user_of_the_directory_who_has_no_home(site: BootedSite) -> None:
    """Who never logged in gets home, workspace, temp directory and an executor of its own, as itself."""
    (user,) = site.fresh_users(1)
    home, workspace = site.machine.root / "home" / user, site.machine.root / "srv/knime/workspaces" / user
    assert not home.exists()
    report = site.job(user, report="full")
    assert report["uids"] == [uid(user)] * 4
    assert report["gids"] == [EVERYBODY[1]] * 4
    assert report["groups"] == [EVERYBODY[1], *([ANALYSTS[1]] if user in site.directory.analysts else [])]
    assert report["cgroup"].splitlines()[-1].endswith(f"/knime.slice/knime-executors.slice/knime-executor-{user}.scope")
    assert site.executors().keys() == {f"knime-executor-{user}.scope"}
    assert (home.stat().st_uid, home.stat().st_mode & 0o7777) == (uid(user), 0o700)
    assert (workspace.stat().st_uid, workspace.stat().st_mode & 0o7777) == (uid(user), 0o700)
    assert acls(workspace) == ("", "u::rwx g::--- o::---")
    assert report["may"] == {path: ["read", "write", "search"] for path in (f"/home/{user}", f"/srv/knime/temp/{user}")}


def test_the_first_line_that_an_executor_writes_is_in_the_journal_under_its_own_scope(site: BootedSite) -> None:
    """And none of them under the helper's unit."""
    (user,) = site.fresh_users(1)
    site.job(user)
    tag = f"SYSLOG_IDENTIFIER=knime-executor-{user}"
    wait_for(lambda: site.machine.journal(tag), 5, "the executor's first line")
    first = site.machine.journal(tag)[0]
    assert first["MESSAGE"] == f"executor of {user} is ready"
    assert (first["_SYSTEMD_UNIT"], first["_UID"]) == (f"knime-executor-{user}.scope", str(uid(user)))
    assert site.machine.journal(tag, f"_SYSTEMD_UNIT={HELPER}") == []


def test_limits_of_all_and_of_the_first_group_are_those_of_the_scope(site: BootedSite) -> None:
    limits = {"memory_max": "2G", "cpu_weight": 50, "tasks_max": 500, "nofile": 4096, "core": 0}
    groups = [{"group": ANALYSTS[0], "memory_max": "4G", "io_weight": 20}]
    site.configure_helper(executor={"limits": limits, "group_limits": groups})
    user, analyst = site.fresh_users(1)[0], site.directory.names[-1]
    reports = site.jobs_of([user, analyst], report="full")
    names = ("MemoryMax", "CPUWeight", "TasksMax", "IOWeight", "KillMode", "TimeoutStopUSec", "CollectMode")
    shown = {name: [site.show(f"knime-executor-{name}.scope", key) for key in names] for name in (user, analyst)}
    rest = ["control-group", "1min", "inactive-or-failed"]
    assert shown[user] == [str(2 << 30), "50", "500", "[not set]", *rest]
    assert shown[analyst] == [str(4 << 30), "50", "500", "20", *rest]
    assert ANALYSTS[1] in reports[analyst]["groups"]
    wanted = {"Max open files": ["4096", "4096"], "Max core file size": ["0", "0"]}
    for report in reports.values():
        text = site.machine.run("cat", f"/proc/{report['pid']}/limits")
        lines = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()}
        assert {key: lines[key] for key in wanted} == wanted


def test_of_a_hundred_starts_at_once_every_executor_and_its_children_are_only_ever_in_their_own_scope(
    site: BootedSite,
) -> None:
    """Looked at all the time: no scope holds a process of somebody else, and no other cgroup one of theirs."""
    users = site.directory.names[100:200]
    uids: dict[str, set[int]] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            for cgroup, owner in _owners(site):
                uids.setdefault(cgroup, set()).add(owner)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for user in users:
            site.publish_shell(user, "setsid sleep 100 >/dev/null 2>&1 & cat /proc/$!/cgroup")
        reports = {report["user"]: report for report in site.server.results(len(users), seconds=120)}
    finally:
        done.set()
        looking.join()
    # root is the worker itself, which enters its scope just before it becomes the user
    found = {cgroup: owners - {0} for cgroup, owners in uids.items() if owners & set(map(uid, users))}
    assert found == {f"knime-executor-{user}.scope": {uid(user)} for user in users}
    assert {user: report["uid"] for user, report in reports.items()} == {user: uid(user) for user in users}
    assert all(f"/knime-executor-{user}.scope\n" in report["shell"]["output"] for user, report in reports.items())
    assert {len(pids) for pids in site.executors().values()} == {2}


def _owners(site: BootedSite) -> Iterator[tuple[str, int]]:
    """Give each process of the machine as the host sees it: the name of its cgroup, and its real uid.

    The cgroup is read last: a worker enters its scope first and becomes the user then.
    """
    for processes in site.machine.cgroup("/").rglob("cgroup.procs"):
        with suppress(OSError):  # it ended meanwhile
            for pid in processes.read_text(encoding="ascii").split():
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                cgroup = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").rpartition("0::")[2]
                yield Path(cgroup.strip()).name, int(status.partition("\nUid:")[2].split(maxsplit=1)[0])
