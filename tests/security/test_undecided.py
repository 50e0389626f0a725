"""SECURITY.md: what could not be decided is never "no such user", and never a deny rule less."""

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.names import UserName
from root_helper import accounts

WITHOUT_DESCRIPTORS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from root_helper import accounts
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
try:
    print("gave", {call})
except accounts.Undecided as error:
    print("undecided", error)
"""


@pytest.mark.parametrize("call", ["accounts.account_of('daemon')", "accounts.group_id('daemon')"])
def test_a_look_up_that_fails_is_undecided(call: str) -> None:
    """Python's pwd and grp raise KeyError for whatever NSS answers, as where it cannot open a file."""
    program = WITHOUT_DESCRIPTORS.format(call=call)
    command = [sys.executable, "-I", "-c", program, str(Path(__file__).parents[2])]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("undecided NSS look-up of daemon: ")


def test_a_name_that_nobody_has_is_unknown() -> None:
    assert accounts.account_of(UserName("nobody-has-this-name")) is None
    assert accounts.group_id("nobody-has-this-name") is None
