"""The same on Debian 13, in short; and a Java program as the executor, on the newer of the two Java versions."""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.booted_site import CHECKOUT, HELPER, BootedSite, booted_site
from tests.lab.ldap import uid
from tests.lab.machine import JAVA, PACKAGES
from tests.lab.processes import wait_for
from tests.system.test_measured import MOST, exposure

JARS = ":".join(f"/usr/share/java/{name}.jar" for name in ("amqp-client", "slf4j-api", "slf4j-nop"))


@pytest.fixture(scope="module")
def trixie() -> Iterator[BootedSite]:
    yield from booted_site("trixie", Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"), (*PACKAGES, *JAVA))


def test_first_jobs_run_and_a_killed_helper_adopts_from_the_scopes(trixie: BootedSite) -> None:
    users = trixie.fresh_users(10)
    before = trixie.jobs_of(users, report="full")
    assert {user: report["uids"][0] for user, report in before.items()} == {user: uid(user) for user in users}
    trixie.systemctl("kill", "-s", "KILL", HELPER)
    trixie.machine.run("sh", "-ec", "rm -f /run/knime-peruser/executors/*")
    wait_for(lambda: trixie.show(HELPER, "SubState") == "running", 10, "the restarted helper")
    after = trixie.jobs_of(users)
    assert {user: report["pid"] for user, report in after.items()} == {
        user: report["pid"] for user, report in before.items()
    }
    assert len(trixie.listed()) == 10


def test_the_exposure_is_within_the_limits_by_the_newer_systemds_word_too(trixie: BootedSite) -> None:
    assert [unit for unit, most in MOST.items() if exposure(trixie, unit) > most] == []


def test_a_java_program_connects_takes_its_job_compiles_maps_and_writes_everywhere(trixie: BootedSite) -> None:
    (user,) = trixie.fresh_users(1)
    trixie.machine.run("sh", "-ec", "mkdir -p /srv/share-java; mount -t tmpfs -o mode=1777 java /srv/share-java")
    source = (CHECKOUT / "tests/simulated_knime/StandIn.java").read_text(encoding="utf-8")
    trixie.machine.write("/opt/knime-java/StandIn.java", source)
    command = f'exec /usr/bin/java "-Djava.io.tmpdir=$TMPDIR" -cp {JARS} /opt/knime-java/StandIn.java "$@"'
    trixie.machine.write("/opt/knime-java/knime", f"#!/bin/sh\n{command}\n", 0o755)
    trixie.configure_helper(executor={"home": "/opt/knime-java"})
    began = time.time()
    report = trixie.job(user, seconds=60)
    assert report["compiled_ms"] > 0
    assert report["temporary"] == f"/srv/knime/temp/{user}"
    places = [f"/home/{user}", f"/srv/knime/workspaces/{user}", f"/srv/knime/temp/{user}", "/tmp", "/srv/share-java"]
    found = trixie.machine.run("stat", "-c", "%u %a", *(f"{place}/java-of-{user}" for place in places))
    assert found.splitlines() == [f"{uid(user)} 600"] * 5
    assert report["pid"] in trixie.executors()[f"knime-executor-{user}.scope"]
    assert "start_timeout" not in " ".join(
        entry["MESSAGE"] for entry in trixie.machine.journal(f"--since=@{began:.0f}")
    )
