"""Output that nobody reads, that has no room, or that is closed: commands end quietly, and have done what they do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.broker_node import BrokerNode
from tests.lab.installation import Installation
from tests.lab.operators_command import command, run
from tests.lab.processes import PATH, wait_for
from tests.lab.site import Site

COMMANDS = [
    ["--help"], ["--version"], ["check", "--help"], ["status"], ["status", "--json"], ["status", "alice", "--json"],
    ["check"], ["check", "--json"], ["audit", "show"], ["audit", "show", "--json"], ["audit", "show", "--follow"],
    ["audit", "verify", "--json"], ["parked", "list"], ["parked", "show", "--json"], ["stop", "nobody", "--json"],
    ["parked", "drop", "--all", "--dry-run"],
]  # fmt: skip
READER_GONE = 141
"""What a shell says of a program that SIGPIPE ended."""


@pytest.fixture(scope="module")
def site(broker: BrokerNode) -> Iterator[Site]:
    """Give a site that runs, with a message that is parked."""
    made = Site(broker)
    try:
        made.create()
        (made.installation.etc / "broker-password").write_text(broker.listener.password)
        made.start()
        made.server.publish_raw(b"no job")
        made.server.publish(made.accounts.user("alice").name)
        made.server.results(1)
        wait_for(lambda: made.server.depth("knime-jobs.parked") == 1, 20, "the parked message")
        yield made
    finally:
        made.remove()


def unread(installation: Installation, *words: str, both: bool = False) -> tuple[int, str]:
    """Run a command whose output is a pipe that nobody reads; give its exit status and what it says on stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            command(installation, *words), stdin=subprocess.DEVNULL, stdout=writer,
            stderr=writer if both else subprocess.PIPE, env={"PATH": PATH, "LANG": "C.UTF-8"}, check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.close(writer)
    return done.returncode, (done.stderr or b"").decode()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_went_away_ends_a_command_quietly(site: Site, words: list[str]) -> None:
    """As ``yes | head`` ends: no word of Python's about a pipe, and the status that shells give to SIGPIPE."""
    status, said = unread(site.installation, *words)
    assert status == READER_GONE
    assert [line for line in said.splitlines() if not line.startswith("knime-peruser: ")] == []
    assert "pipe" not in said.lower()


@pytest.mark.parametrize("words", [["status"], ["parked", "list"], ["stop", "nobody"], ["--nonsense"]], ids=" ".join)
def test_both_outputs_may_be_unread(site: Site, words: list[str]) -> None:
    assert unread(site.installation, *words, both=True)[0] == READER_GONE


def test_what_a_command_does_is_done_though_nobody_reads(site: Site) -> None:
    """Draining has begun, and is over; only its words are lost."""
    assert unread(site.installation, "drain")[0] == READER_GONE
    assert status_of(site)["helper"]["draining"] is True
    assert unread(site.installation, "undrain")[0] == READER_GONE
    assert status_of(site)["helper"]["draining"] is False


def status_of(site: Site) -> dict[str, dict[str, bool]]:
    said = run(site.installation, "status", "--json", "--status-socket", str(site.installation.status_socket))
    return dict(json.loads(said.out))


def redirected(site: Site, redirection: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a redirection of the shell's."""
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(site.installation, *words)]
    return subprocess.run(shell, capture_output=True, text=True, check=False, env={"PATH": PATH}, timeout=60)


@pytest.mark.parametrize("words", [["status", "--json"], ["parked", "list"], ["audit", "show"]], ids=" ".join)
def test_a_full_disk_is_said_and_is_no_success(site: Site, words: list[str]) -> None:
    """A report that is not on the disk must not look as if it were."""
    done = redirected(site, ">/dev/full", *words)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "knime-peruser: the output cannot be written: No space left on device"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_is_as_good_as_dev_null(site: Site, closed: str) -> None:
    """No file that a command opens gets the number of an output, and nothing is printed into it."""
    done = redirected(site, closed, "audit", "show")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert bool(done.stdout) is (" >&-" not in f" {closed}")
    asked = redirected(site, closed, "parked", "drop", "--all")
    assert asked.returncode == 2, "nobody can be asked"


def test_the_listeners_check_says_its_faults_to_who_listens(tmp_path: Path) -> None:
    """Exit status 2 means a fault of the configuration, whoever reads it."""
    faulty = tmp_path / "listener.toml"
    faulty.write_text("[broker]\nurls = []\n")
    listener = [sys.executable, "-m", "broker_listener"]
    for redirection in ("2>&-", ">&-", "2>/dev/full"):
        shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *listener, "--config", str(faulty), "--check"]
        done = subprocess.run(shell, capture_output=True, text=True, check=False, env={"PATH": PATH}, timeout=60)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), redirection
