"""The part of SECURITY.md that is measured: exposure, and what fails without each capability of the helper.

It is written anew by ``python tests/system/test_measured.py`` in the checkout, as root.
"""

import re
import secrets
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.lab.booted_site import CHECKOUT, HELPER, LISTENER, BootedSite, booted_site
from tests.lab.machine import PACKAGES
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
    try:
        wait_for(lambda: any(record["event"] == "result" for record in site.audit(user)), 5, "the answer")
    except TimeoutError:
        assert not site.server.further_results(0)
        return "the gate does not start, nobody can ask the helper"
    result = next(record for record in site.audit(user) if record["event"] == "result")
    if result["decision"] != "started":
        return f"no executor starts: `{result['reason']}`"
    site.ask_helper(op="stop", user=user)
    try:
        wait_for(lambda: not site.executors(), 4, "its end")
    except TimeoutError:
        return "no executor can be stopped"
    return "nothing"


def measured(site: BootedSite) -> str:
    version = site.machine.run("systemctl", "--version").split()[1]
    lines = [f"| unit | exposure, systemd {version} | limit |", "| --- | --- | --- |"]
    lines += [f"| `{unit}` | {exposure(site, unit)} | {most} |" for unit, most in MOST.items()]
    lines += ["", "| without | what fails |", "| --- | --- |"]
    for capability in capabilities():
        lines.append(f"| `{capability}` | {fails_without(site, capability)} |")
        site.restore()
    return "\n".join([*lines, ""])


def security_with(part: str) -> str:
    before, _, rest = SECURITY.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{part}{END}{rest.partition(END)[2]}"


def test_exposure_and_capabilities_are_as_security_md_says_and_within_the_limits(site: BootedSite) -> None:
    """And without each capability something fails: none is there for nothing."""
    part = measured(site)
    assert security_with(part) == SECURITY.read_text(encoding="utf-8")
    assert "| nothing |" not in part
    assert all(exposure(site, unit) <= most for unit, most in MOST.items())


if __name__ == "__main__":
    packages = (*PACKAGES, *DRIVE_PACKAGES)  # the image that the other tests use
    for made in booted_site("bookworm", Path(f"/var/lib/kpr-machine-{secrets.token_hex(4)}"), packages):
        SECURITY.write_text(security_with(measured(made)), encoding="utf-8")
