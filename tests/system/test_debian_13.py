"""The same on Debian 13, in short; and a Java program as the executor, on the newer of the two Java versions.

What is taken from other files runs here on this file's own site, as it does there on a Debian 12.
"""

import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.booted_site import CHECKOUT, BootedSite, booted_site
from tests.lab.ldap import uid
from tests.lab.machine import JAVA, PACKAGES
from tests.system import test_first_job, test_restarts, test_units, test_upgrade
from tests.system.test_measured import MOST, documented_exposures, exposures

JARS = ":".join(f"/usr/share/java/{name}.jar" for name in ("amqp-client", "slf4j-api", "slf4j-nop"))


@pytest.fixture(scope="module")
def booted() -> Iterator[BootedSite]:
    """In this file ``site`` is a Debian 13."""
    yield from booted_site("trixie", Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"), (*PACKAGES, *JAVA))


test_from_boot_to_the_first_job = (
    test_first_job.test_from_boot_to_the_first_job_of_a_user_of_the_directory_who_has_no_home
)
test_a_restart_under_load = test_restarts.test_a_restart_under_load_loses_no_job_and_ends_no_executor
test_a_killed_helpers_fifty_executors_are_all_adopted = (
    test_restarts.test_a_killed_helpers_fifty_executors_are_all_adopted_whatever_became_of_its_state_files
)
test_after_a_reboot = test_restarts.test_after_a_reboot_the_jobs_that_ran_or_were_queued_run
test_the_watchdog = test_units.test_a_daemon_whose_loop_stands_still_is_restarted_by_the_watchdog_and_executors_live_on
test_a_bad_configuration = test_units.test_a_bad_configuration_ends_with_2_is_named_in_the_status_and_is_not_tried_again
test_an_absent_credential = test_units.test_an_absent_credential_is_named_in_the_status
test_the_units_order = test_units.test_units_wait_for_network_users_remote_files_and_the_broker_and_say_what_they_do
test_an_upgrade_under_load = (
    test_upgrade.test_an_upgrade_under_load_loses_no_job_and_ends_no_executor_and_both_daemons_run_the_new_code
)


def test_the_exposure_by_the_newer_systemds_word_is_as_security_md_says_and_within_the_limits(site: BootedSite) -> None:
    found = exposures(site)
    assert found == documented_exposures()[1]
    assert all(float(figure) <= most for figure, most in zip(found[2:], MOST.values(), strict=True))


def test_a_java_program_connects_takes_its_job_compiles_maps_and_writes_everywhere(site: BootedSite) -> None:
    (user,) = site.fresh_users(1)
    site.machine.run("sh", "-ec", "mkdir -p /srv/share-java; mount -t tmpfs -o mode=1777 java /srv/share-java")
    source = (CHECKOUT / "tests/simulated_knime/StandIn.java").read_text(encoding="utf-8")
    site.machine.write("/opt/knime-java/StandIn.java", source)
    command = f'exec /usr/bin/java -cp {JARS} /opt/knime-java/StandIn.java "$@"'
    site.machine.write("/opt/knime-java/knime", f"#!/bin/sh\n{command}\n", 0o755)
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    (java,) = re.findall(r"^JAVA_TOOL_OPTIONS = \"(.+)\"$", readme, re.MULTILINE)
    site.configure_helper(executor={"home": "/opt/knime-java", "environment": {"JAVA_TOOL_OPTIONS": java}})
    began = time.time()
    report = site.job(user, seconds=60)
    assert report["compiled_ms"] > 0
    assert report["temporary"] == f"/srv/knime/temp/{user}"
    places = [f"/home/{user}", f"/srv/knime/workspaces/{user}", f"/srv/knime/temp/{user}", "/tmp", "/srv/share-java"]
    found = site.machine.run("stat", "-c", "%u %a", *(f"{place}/java-of-{user}" for place in places))
    assert found.splitlines() == [f"{uid(user)} 600"] * 5
    assert report["pid"] in site.executors()[f"knime-executor-{user}.scope"]
    assert "start_timeout" not in " ".join(entry["MESSAGE"] for entry in site.machine.journal(f"--since=@{began:.0f}"))
