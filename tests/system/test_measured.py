"""The part of SECURITY.md that is measured: exposure, and what fails without each capability of the helper.

It is written anew by ``python tests/system/test_measured.py`` in the checkout, as root.
"""

import re
import secrets
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest

from tests.lab.booted_site import CHECKOUT, HELPER, LISTENER, BootedSite, booted_site
from tests.lab.machine import JAVA, PACKAGES
from tests.lab.network_drive import DRIVE_PACKAGES
from tests.lab.processes import wait_for

SECURITY = CHECKOUT / "SECURITY.md"
BEGIN, END = "<!-- generated: measured -->\n", "<!-- end -->\n"
MOST = {LISTENER: 1.2, HELPER: 2.9}


def exposure(site: BootedSite, unit: str) -> float:
    """Give what ``systemd-analyze security`` says, from 0 (good) to 10."""
    text = site.machine.run("systemd-analyze", "security", "--no-pager", unit)
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)
    assert match, text
    return float(match[1])


def capabilities() -> list[str]:
    unit = (CHECKOUT / "systemd" / HELPER).read_text(encoding="utf-8")
    return " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)).split()


def results(site: BootedSite, user: str) -> list[dict[str, Any]]:
    return [record for record in site.audit(user) if record["event"] == "result"]


def gates_ended(site: BootedSite) -> int:
    """Say how often the helper that runs now has noted its gate's end."""
    invocation = site.show(HELPER, "InvocationID")
    entries = site.machine.journal(f"_SYSTEMD_INVOCATION_ID={invocation}")
    return sum("the gate ended" in entry["MESSAGE"] for entry in entries)


def fails_without(site: BootedSite, capability: str) -> str:
    """Take one capability away and give a user an executor, then end it; say what does not work."""
    site.configure_helper(limits={"stop_grace": 1.0})
    rest = " ".join(name for name in capabilities() if name != capability)
    site.drop_in(HELPER, f"[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet={rest}\nRestart=no\n")
    site.machine.run("systemctl", "restart", HELPER, check=False)
    if site.show(HELPER, "SubState") != "running":
        return "the helper does not start"
    (user,) = site.fresh_users(1)
    site.server.publish(user)
    wait_for(lambda: results(site, user) or gates_ended(site) >= 3, 20, "an answer, or the third end of a gate")
    if not results(site, user):
        return "the gate does not start, nobody can ask the helper"
    result = results(site, user)[0]
    if result["decision"] != "started":
        return f"no executor starts: `{result['reason']}`"
    site.ask_helper(op="stop", user=user)
    try:
        wait_for(lambda: not site.executors(), 4, "its end")
    except TimeoutError:
        return "no executor can be stopped"
    return "nothing"


def exposures(site: BootedSite) -> tuple[str, ...]:
    """Give systemd's version and each unit's exposure: a column of the table."""
    version = site.machine.run("systemctl", "--version").split()[1]
    return (f"exposure, systemd {version}", "---", *(str(exposure(site, unit)) for unit in MOST))


def documented_exposures() -> list[tuple[str, ...]]:
    """Give the columns that SECURITY.md has."""
    part = SECURITY.read_text(encoding="utf-8").partition(BEGIN)[2].partition("\n\n")[0]
    return list(zip(*(row.strip("| ").split(" | ") for row in part.splitlines()), strict=True))[1:-1]


def measured(site: BootedSite, columns: list[tuple[str, ...]]) -> str:
    names = ("unit", "---", *(f"`{unit}`" for unit in MOST))
    limits = ("limit", "---", *map(str, MOST.values()))
    lines = [f"| {' | '.join(row)} |" for row in zip(names, *columns, limits, strict=True)]
    lines += ["", "| without | what fails |", "| --- | --- |"]
    for capability in capabilities():
        lines.append(f"| `{capability}` | {fails_without(site, capability)} |")
        site.restore()
    return "\n".join([*lines, ""])


def security_with(part: str) -> str:
    before, _, rest = SECURITY.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{part}{END}{rest.partition(END)[2]}"


def test_exposure_and_capabilities_are_as_security_md_says_and_within_the_limits(site: BootedSite) -> None:
    """And without each capability something fails: none is there for nothing. Systemd 257 has a test of its own."""
    ours, newer = documented_exposures()
    part = measured(site, [exposures(site), newer])
    assert security_with(part) == SECURITY.read_text(encoding="utf-8")
    assert "| nothing |" not in part
    assert all(float(figure) <= most for figure, most in zip(ours[2:], MOST.values(), strict=True))


@pytest.mark.debian_13
def test_the_exposure_by_the_newer_systemds_word_is_as_security_md_says_and_within_the_limits(site: BootedSite) -> None:
    found = exposures(site)
    assert found == documented_exposures()[1]
    assert all(float(figure) <= most for figure, most in zip(found[2:], MOST.values(), strict=True))


def _directory() -> Path:
    return Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}")


if __name__ == "__main__":  # on the images that the other tests use
    columns = [exposures(made) for made in booted_site("trixie", _directory(), (*PACKAGES, *JAVA))]
    for made in booted_site("bookworm", _directory(), (*PACKAGES, *DRIVE_PACKAGES)):
        SECURITY.write_text(security_with(measured(made, [exposures(made), *columns])), encoding="utf-8")
