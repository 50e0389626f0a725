"""Which systems are named as supported, and of which it is said that it was not tried there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_listener.operator.checks import host
from tests.lab import platform

ROOT = Path(__file__).parents[2]
UNTRIED = "Ubuntu 24.04 (not tried yet)"
NAMED = ("README.md", "CHANGELOG.md", "quickstart", "tests/lab/platform.py", "tests/lab/packages.py",
         "broker_listener/operator/checks/host.py", "systemd/package", "systemd/man/knime-peruser.7")  # fmt: skip


def texts() -> Iterator[Path]:
    """Give every text of the checkout but this one."""
    for path in ROOT.rglob("*"):
        generated = any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parts[:-1])
        if path.suffix in _SUFFIXES and not generated and path.is_file() and path != Path(__file__):
            yield path


def words(path: Path) -> str:
    """Give a file's text without line breaks, quotes of two literals and comment marks between its words."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.sub(r'(?:\s|"\n\s*f?"|#)+', " ", text)


def test_ubuntu_is_named_as_not_tried_wherever_it_is_named() -> None:
    """A reader of any one document or message must not take it for tested."""
    silent = {
        str(path.relative_to(ROOT)): found
        for path in texts()
        if (found := re.findall(r".{30}Ubuntu(?! 24\.04 \(not tried yet\)).{30}", words(path)))
    }
    assert {name for name in silent if name not in _OTHERWISE} == set(), silent


@pytest.mark.parametrize("name", NAMED)
def test_supported_systems_are_the_same_three_everywhere(name: str) -> None:
    """What installs, refuses, checks and explains names the same systems."""
    text = words(ROOT / name)
    assert UNTRIED in text
    assert re.search(r"Debian (12 and|12,) (Debian )?13", text) or name == "systemd/package"


def test_ubuntu_is_not_refused_and_others_are(tmp_path: Path) -> None:
    """Not tried is no reason to refuse; the message that refuses another system says which are supported, and how."""
    release = tmp_path / "os-release"
    release.write_text('ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n')
    assert platform.unsupported(release) is None
    assert platform.untried(release) == "Ubuntu 24.04.1 LTS: not tried yet; what fails here is worth a report"
    release.write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian"\n')
    assert (platform.unsupported(release), platform.untried(release)) == (None, None)
    release.write_text('ID=fedora\nVERSION_ID=42\nPRETTY_NAME="Fedora"\n')
    assert UNTRIED in (platform.unsupported(release) or "")


def test_check_and_quickstart_support_the_same_systems() -> None:
    assert host.SUPPORTED == platform.SUPPORTED
    assert host.UNTRIED == platform.UNTRIED <= platform.SUPPORTED


_SUFFIXES = ("", ".md", ".py", ".toml", ".yml", ".7", ".8", ".service", ".slice", ".json")
_OTHERWISE = ("SECURITY.md", "SECURITY-REVIEW.md", "LICENSE", "root_helper/config_file.py")
"""Who writes /var/log there is known of that distribution, whether anything else was tried or not."""
