"""SECURITY.md: what was given up cannot be had back, whoever started the helper with whatever. Needs root."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.accounts import Accounts, OsUser
from tests.lab.processes import PATH

CHECKOUT = Path(__file__).parents[2]
BECOME = """
import os, sys
sys.path.insert(0, sys.argv[1])
from root_helper.spawn import become, no_new_privileges
uid, gid = int(sys.argv[2]), int(sys.argv[3])
become(uid, gid, (gid,))
no_new_privileges()
print(open("/proc/self/status").read())
for way_back in (lambda: os.setresuid(0, 0, 0), lambda: os.setresgid(0, 0, 0), lambda: os.setgroups([0])):
    try:
        way_back()
    except PermissionError:
        print("no way back")
"""

KEPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from root_helper import spawn
uid, gid, kept = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
right = {name: getattr(os, name) for name in ("setresuid", "setresgid", "setgroups")}

def once(name, *instead):
    def call(*_):
        setattr(os, name, right[name])
        right[name](*instead)
    setattr(os, name, call)

if kept == "saved uid, unseen":
    once("setresuid", uid, uid, 0)
    os.getresuid = lambda: (uid, uid, uid)
elif kept == "saved uid":
    once("setresuid", uid, uid, 0)
elif kept == "saved gid":
    once("setresgid", gid, gid, 0)
elif kept == "groups":
    once("setgroups", [gid, 0])
try:
    spawn.become(uid, gid, (gid,))
    print("gave root up")
except spawn.SpawnError as error:
    print(error)
"""


def become(user: OsUser, *prefix: str) -> list[str]:
    command = [*prefix, sys.executable, "-I", "-c", BECOME, str(CHECKOUT), str(user.uid), str(user.gid)]
    return subprocess.run(command, env={"PATH": PATH}, capture_output=True, text=True, check=True).stdout.splitlines()


def test_no_capability_survives_not_even_an_inheritable_one(users: Accounts) -> None:
    """setresuid(2) empties the other sets; a container's manager may have filled this one."""
    user = users.user("alice")
    said = become(user, "setpriv", "--inh-caps=+chown,+setuid,+dac_override")
    facts = dict(line.split(":\t", 1) for line in said if ":\t" in line)
    assert {facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ("nothing", "gave root up"),
        ("saved uid", "the kernel did not set the ids that were asked for"),
        ("saved gid", "the kernel did not set the ids that were asked for"),
        ("groups", "the kernel did not set the ids that were asked for"),
        ("saved uid, unseen", "uid 0 can be had back"),
    ],
)
def test_whoever_keeps_something_of_root_is_not_executed(users: Accounts, kept: str, said: str) -> None:
    """Where a call does less than it was asked for and says nothing; the fault is injected."""
    user = users.user("alice")
    command = [sys.executable, "-I", "-c", KEPT, str(CHECKOUT), str(user.uid), str(user.gid), kept]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{said}\n"


def test_there_is_no_way_back_to_root(users: Accounts) -> None:
    said = become(users.user("alice"))
    assert said.count("no way back") == 3
