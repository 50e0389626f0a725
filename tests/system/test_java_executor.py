"""A Java program as the executor, as KNIME's is, on the newer of the two Java versions."""

import re
import time

import pytest

from tests.lab.booted_site import CHECKOUT, BootedSite
from tests.lab.ldap import uid

JARS = ":".join(f"/usr/share/java/{name}.jar" for name in ("amqp-client", "slf4j-api", "slf4j-nop"))


@pytest.mark.debian_13
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
