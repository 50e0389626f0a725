"""An upgrade of the package at noon: jobs flow and executors run, neither notices, and both daemons are new ones."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab import own_package
from tests.lab.booted_site import HELPER, LISTENER, BootedSite
from tests.simulated_knime.server import Report

RELEASE = own_package.last_release()
HIGHER = "999-1"


@pytest.mark.both_debians
def test_upgrade_from_this_tree_loses_no_job(site: BootedSite) -> None:
    """The same tree under a lower version and a higher one: no job is lost, no executor ends, the code is new."""
    upgraded_under_load(site, own_package.CHECKOUT, own_package.LOWER)


@pytest.mark.both_debians
def test_upgrade_from_the_last_release_loses_no_job(site: BootedSite, tmp_path: Path) -> None:
    """The package that the last release was: no job is lost, no executor ends, both daemons run the new code."""
    source = own_package.unpacked(RELEASE, tmp_path)
    upgraded_under_load(site, source, f"{RELEASE.version}-1")
    newest = site.machine.run("knime-peruser", "--version")
    assert RELEASE.version not in newest, "this tree is a later version"


def upgraded_under_load(site: BootedSite, source: Path, version: str) -> None:
    """Install the package of a tree, put load on it, upgrade it to this checkout's, and look at everything."""
    site.upgrade(own_package.built(version, site.machine.root, source))
    site.wait_until_served()
    new = own_package.built(HIGHER, site.machine.root)
    users, newcomers = site.fresh_users(6), site.fresh_users(6)
    pids = {user: report["pid"] for user, report in site.jobs_of(users).items()}
    daemons = {unit: site.main_pid(unit) for unit in (HELPER, LISTENER)}
    began = time.time()
    jobs = _published_during_upgrade(site, new, users, newcomers)
    reports = site.server.results(len(jobs), seconds=90)
    assert Counter(report["job"] for report in reports) == Counter(jobs.keys()), "each ran, and once"
    assert {report["job"]: report["user"] for report in reports} == jobs
    assert _pids(reports, users) == {user: {pid} for user, pid in pids.items()}, "no executor was ended"
    pids |= {user: pid for user, (pid,) in _pids(reports, newcomers).items()}
    assert {entry.user: entry.pid for entry in site.listed()} == pids, "all are adopted"
    (later,) = site.fresh_users(1)
    assert site.job(later)["user"] == later
    assert site.server.depth("knime-jobs.parked") == 0
    for unit, pid in daemons.items():
        assert site.main_pid(unit) != pid
        assert began < _newest_code(site) < _started(site, unit)


def _published_during_upgrade(site: BootedSite, package: str, users: list[str], newcomers: list[str]) -> dict[str, str]:
    """Give the user of each job; the jobs of those who had no executor come throughout, one after the other."""
    waiting, jobs, rounds = list(newcomers), {}, 0
    with ThreadPoolExecutor(1) as administrator:
        upgrade = administrator.submit(site.upgrade, package)
        while not upgrade.done() or waiting:
            rounds += 1
            some = users if rounds % 8 or not waiting else [*users, waiting.pop()]
            jobs |= {site.server.publish(user, seconds=0.01): user for user in some}
            time.sleep(0.05)
        upgrade.result()
    return jobs


def _pids(reports: list[Report], users: list[str]) -> dict[str, set[int]]:
    return {user: {report["pid"] for report in reports if report["user"] == user} for user in users}


def _newest_code(site: BootedSite) -> float:
    """Give when the last file of the daemons' code was put there, in Unix seconds."""
    files = (site.machine.root / "usr/lib/knime-peruser").rglob("*.py")
    return max(file.stat().st_ctime for file in files)


def _started(site: BootedSite, unit: str) -> float:
    """Give when a unit's main process was started, in Unix seconds."""
    since_boot = int(site.show(unit, "ExecMainStartTimestampMonotonic")) / 1e6
    return time.time() - time.monotonic() + since_boot
