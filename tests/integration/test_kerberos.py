"""A ticket for the executor, for shares that are mounted with Kerberos: k5start as executor.prefix, and a real KDC."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.accounts import OsUser
from tests.lab.helper_under_test import HelperUnderTest, children, helper_under_test, status_of
from tests.lab.kerberos import REALM, Realm
from tests.lab.processes import PATH, processes_of, wait_for


@pytest.fixture(scope="module")
def helper() -> Iterator[HelperUnderTest]:
    with helper_under_test() as made:
        yield made


@pytest.fixture(scope="module")
def realm(helper: HelperUnderTest, people: tuple[OsUser, OsUser]) -> Iterator[Realm]:
    """Give a realm with a keytab for each; bob's is root's and not his."""
    made = Realm(helper.installation.root / "kerberos")
    try:
        made.create()
        for user, owner in zip(people, (people[0].uid, 0), strict=True):
            made.keytab(user.name, owner)
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def people(helper: HelperUnderTest) -> tuple[OsUser, OsUser]:
    return helper.accounts.user("alice"), helper.accounts.user("bob")


@pytest.fixture(autouse=True)
def new_host(helper: HelperUnderTest) -> Iterator[None]:
    yield
    helper.reset()


def start_with_tickets(helper: HelperUnderTest, realm: Realm) -> None:
    """Configure what README.md says, with this realm's configuration file in place of the machine's."""
    prefix = ["/usr/bin/k5start", "-q", "-U", "-f", f"{realm.keytabs}/{{os_user}}.keytab"]
    prefix += ["-k", "FILE:{temp}/krb5cc", "-K", "10", "--"]
    environment = {"KRB5_CONFIG": str(realm.configuration)}
    helper.start(executor={"prefix": prefix, "environment": environment})


def klist(realm: Realm, user: OsUser, cache: str) -> str:
    """Give what a ticket cache holds, asked as the user."""
    environment = {"PATH": PATH, "KRB5_CONFIG": str(realm.configuration), "KRB5CCNAME": cache, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["/usr/bin/klist"], env=environment, user=user.uid, group=user.gid, extra_groups=[],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    return done.stdout


def test_an_executor_has_a_ticket_of_its_own_user_obtained_after_the_drop(
    helper: HelperUnderTest, realm: Realm, people: tuple[OsUser, OsUser]
) -> None:
    """The keytab is the user's alone, the cache too; nothing of it is done as root."""
    alice, _ = people
    start_with_tickets(helper, realm)
    helper.program_of(alice, 'klist > ticket 2>&1; echo "$KRB5CCNAME" > cache')
    reply = helper.client().ensure(alice.name)
    assert reply["result"] == "started", helper.log.read_text()
    workspace = helper.installation.workspace(alice)
    wait_for(lambda: children(reply["pid"]) and (workspace / "cache").exists(), 30.0, "the executor below k5start")
    wait_for(lambda: status_of(children(reply["pid"])[0])["Name"] == ["sleep"], 30.0, "the executor at work")
    wrapper, executor = reply["pid"], children(reply["pid"])[0]
    for pid in (wrapper, executor):
        facts = status_of(pid)
        assert facts["Uid"] == [str(alice.uid)] * 4
        assert facts["NoNewPrivs"] == ["1"]
    said = (workspace / "ticket").read_text()
    assert f"Default principal: {alice.name}@{REALM}" in said
    assert f"krbtgt/{REALM}@{REALM}" in said
    cache = helper.installation.temp / alice.name / "krb5cc"
    assert (workspace / "cache").read_text().strip() == f"FILE:{cache}"
    assert (cache.stat().st_uid, cache.stat().st_mode & 0o777) == (alice.uid, 0o600)
    assert f"krbtgt/{REALM}" in klist(realm, alice, f"FILE:{cache}")
    helper.operator("stop", user=alice.name)
    wait_for(lambda: not any(processes_of([alice.uid])), 30.0, "the end of both")


def test_without_a_keytab_of_its_own_a_user_has_no_executor_and_others_have(
    helper: HelperUnderTest, realm: Realm, people: tuple[OsUser, OsUser]
) -> None:
    """k5start ends, which is a quick death of the executor: the user waits, and nobody gets another's ticket."""
    alice, bob = people
    start_with_tickets(helper, realm)
    client = helper.client()
    assert client.ensure(bob.name)["result"] == "started", "executed: k5start, which cannot read root's keytab"
    assert client.wait_for_notice(user=bob.name)["status"] == 1
    assert not (helper.installation.temp / bob.name / "krb5cc").exists()
    assert client.ensure(alice.name)["result"] == "started"
