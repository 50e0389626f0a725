"""May this account have an executor? Every way in which NSS could answer, and what is made of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import RefusedReason
from protocol.names import UserName, parse_user_name
from root_helper.policy import Account, Rules, directory_name, os_user_of, refusal

ALICE = Account("alice", 1000, 1000, (1000, 2000), "/home/alice", "/bin/bash")
RULES = Rules(
    min_uid=1000,
    max_uid=2**32 - 3,
    deny_users=frozenset({"root", "nobody", "eve"}),
    denied_uids=frozenset({1700}),
    deny_gids=frozenset({27, 4242}),
    allow_gids=None,
)


def decided(rules: Rules = RULES, asked: str = "alice", **changes: object) -> RefusedReason | None:
    return refusal(UserName(asked), replace(ALICE, **changes), rules)  # type: ignore[arg-type]


def test_an_ordinary_account_may() -> None:
    assert decided() is None


@pytest.mark.parametrize("name", ["Alice", "alice@example.com", "alicf", "", "root"])
def test_another_name_than_the_one_asked_for_is_denied(name: str) -> None:
    """NSS may answer to an alias or fold case; the account that was asked for is another one then."""
    assert decided(name=name) is RefusedReason.DENIED_USER


def test_the_deny_list_counts_for_the_name_that_nss_gave() -> None:
    assert decided(asked="eve", name="eve") is RefusedReason.DENIED_USER


def test_the_uids_of_the_daemons_and_of_the_installations_owner_are_denied() -> None:
    assert decided(uid=1700) is RefusedReason.DENIED_USER


@pytest.mark.parametrize("uid", [-1, 0, 1, 999, 61184, 65534, 65535, 2**32 - 2, 2**32 - 1, 2**32])
def test_a_uid_out_of_range_is_refused_whatever_the_configuration_allows(uid: int) -> None:
    assert decided(uid=uid) is RefusedReason.UID_OUT_OF_RANGE
    if not 1 <= uid < 1000 and uid != 2**32 - 2:
        assert decided(replace(RULES, min_uid=1, max_uid=2**32 - 2), uid=uid) is RefusedReason.UID_OUT_OF_RANGE


@pytest.mark.parametrize("uid", [1000, 61183, 65536, 2**31, 2**32 - 3])
def test_a_uid_at_the_edge_is_in_range(uid: int) -> None:
    assert decided(uid=uid) is None


@pytest.mark.parametrize("gid", [-1, 0, 61184, 65534, 65535, 2**32 - 1])
def test_a_primary_gid_that_no_user_has_is_refused(gid: int) -> None:
    """setresgid(2) leaves a gid of -1 unchanged: root's would stay."""
    assert decided(gid=gid, groups=(gid, 2000)) is RefusedReason.UID_OUT_OF_RANGE


def test_a_primary_gid_without_a_name_or_below_the_range_is_fine() -> None:
    assert decided(gid=100, groups=(100,)) is None
    assert decided(gid=59999, groups=(59999,)) is None


@pytest.mark.parametrize("gid", [0, 2**32 - 1])
def test_root_among_the_supplementary_groups_is_refused(gid: int) -> None:
    assert decided(groups=(1000, gid)) is not None


def test_a_denied_group_counts_also_as_the_primary_one() -> None:
    assert decided(groups=(1000, 27)) is RefusedReason.DENIED_USER
    assert decided(gid=4242, groups=(4242,)) is RefusedReason.DENIED_USER


def test_with_an_allow_list_one_of_its_groups_is_needed() -> None:
    assert decided(replace(RULES, allow_gids=frozenset({2000}))) is None
    assert decided(replace(RULES, allow_gids=frozenset({3000}))) is RefusedReason.NOT_IN_GROUP
    assert decided(replace(RULES, allow_gids=frozenset())) is RefusedReason.NOT_IN_GROUP


def test_a_denied_group_weighs_more_than_an_allowed_one() -> None:
    assert (
        decided(replace(RULES, allow_gids=frozenset({2000}), deny_gids=frozenset({2000}))) is RefusedReason.DENIED_USER
    )


@given(st.builds(Account, st.sampled_from(["alice", "bob"]), st.integers(-1, 2**32), st.integers(-1, 2**32),
                 st.tuples(st.integers(-1, 2**32)), st.just("/"), st.just("")))  # fmt: skip
def test_who_may_is_never_root_nor_minus_one_in_any_id(account: Account) -> None:
    if refusal(UserName("alice"), account, replace(RULES, min_uid=1, max_uid=2**32 - 2)) is None:
        assert account.name == "alice"
        assert all(0 < number < 2**32 - 1 for number in (account.uid, account.gid, *account.groups))


@pytest.mark.parametrize(
    ("user", "expected"),
    [("bob", "bob"), ("Bob", "bob"), ("local", "svc_knime"), ("Local", "local"), ("a;id", None), ("\u212aim", None)],
)
def test_the_map_comes_first_then_lower_case(user: str, expected: str | None) -> None:
    assert os_user_of(user, {"local": "svc_knime"}, lowercase=True, qualified=False) == expected


def test_without_lower_casing_a_name_is_looked_up_as_it_is() -> None:
    assert os_user_of("Bob", {}, lowercase=False, qualified=False) == "Bob"


def test_what_the_map_gives_is_held_to_the_grammar_too() -> None:
    assert os_user_of("bob", {"bob": "../root"}, lowercase=True, qualified=False) is None


@given(st.text(max_size=40), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3), st.booleans())
def test_only_names_of_the_grammar_come_out(user: str, users_map: dict[str, str], lowercase: bool) -> None:  # noqa: FBT001  Hypothesis passes it so
    found = os_user_of(user, users_map, lowercase=lowercase, qualified=False)
    assert found is None or (parse_user_name(found) == found and parse_user_name(user) is not None)


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True).filter(parse_user_name)


def test_a_directory_bears_the_os_users_name_where_that_is_the_knime_users_own() -> None:
    assert directory_name("bob", "bob", {}) == "bob"
    assert directory_name("Bob", "bob", {}) == "bob+Bob"
    assert directory_name("k1", "bob", {}) == "bob+k1"


def test_an_owner_that_was_written_down_keeps_the_predecessors_directory_alone() -> None:
    assert directory_name("Bob", "bob", {"bob": "Bob"}) == "bob"
    assert directory_name("bob", "bob", {"bob": "Bob"}) == "bob+bob"


@given(st.lists(st.tuples(NAMES, NAMES), unique=True, max_size=6), st.dictionaries(NAMES, NAMES, max_size=3))
def test_no_two_users_share_a_directory(pairs: list[tuple[str, str]], owners: dict[str, str]) -> None:
    names = [directory_name(user, os_user, owners) for user, os_user in pairs]
    assert len(set(names)) == len(pairs)
    assert not any("/" in name or name.startswith(".") for name in names)
