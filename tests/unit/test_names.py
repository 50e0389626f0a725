"""The grammar of user names: what passes is harmless wherever it is pasted, and nothing is ever repaired."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import RefusedReason
from protocol.names import UserName, parse_user_name
from root_helper.config import HelperConfig
from root_helper.policy import Account, Rules, os_user_of, refusal

ATTACKS = {
    "a command": "a;id",
    "a way up": "../x",
    "a way up alone": "..",
    "this directory": ".",
    "a substitution": "$(id)",
    "backticks": "`id`",
    "an option": "-rf",
    "nothing": "",
    "5,000 characters": "a" * 5000,
    "33 characters": "a" * 33,
    "a newline at the end": "alice\n",
    "a newline inside": "alice\nbob",
    "digits": "70001",
    "zeros": "0",
    "digits with a dot": "1.5",
    "a Kelvin sign": "\u212aalice",
    "a Kelvin sign inside": "bac\u212aup",
    "a dotless i": "al\u0131ce",
    "full-width letters": "\uff41\uff4c\uff49\uff43\uff45",
    "a foreign digit": "a\u0661",
    "a NUL": "alice\0",
    "a NUL inside": "a\0b",
    "a bidi override": "alice\u202ecod",
    "a zero-width space": "ali\u200bce",
    "a lone surrogate": "a\ud800",
    "an end of the rule": "a' OR user = 'b",
    "a quote": 'a"b',
    "a blank": "a b",
    "a blank at the end": "alice ",
    "a slash": "a/b",
    "an absolute path": "/etc",
    "a backslash": "DOM\\alice",
    "a domain": "alice@example.com",
    "a plus": "alice+bob",
    "a colon": "a:b",
    "a dollar": "host$",
    "a placeholder": "{uid}",
    "a hidden file": ".alice",
    "a dot at the end": "alice.",
    "two dots": "a..b",
    "a dot before a dash": "a.-b",
}


@pytest.mark.parametrize("name", ATTACKS.values(), ids=ATTACKS)
def test_a_name_that_could_mean_something_is_none(name: str) -> None:
    """None of the names that were ever used for an attack, or could be, is in the grammar."""
    assert parse_user_name(name) is None


@pytest.mark.parametrize("name", [name for name in ATTACKS.values() if name != "alice@example.com"])
def test_a_domain_makes_no_bad_name_good(name: str) -> None:
    """With qualified names allowed the part before the @ is held to the same grammar."""
    assert parse_user_name(name, qualified=True) is None
    assert parse_user_name(f"{name}@example.com", qualified=True) is None


@pytest.mark.parametrize(
    "domain", ["", ".", "-a", ".a", "a.", "a..b", "a@b", "a b", "a;b", "a\n", "a/b", "a_b", "k\u212a", "a" * 65]
)
def test_a_domain_outside_the_grammar_is_refused(domain: str) -> None:
    assert parse_user_name(f"alice@{domain}", qualified=True) is None


@pytest.mark.parametrize("name", ["a", "Z", "_", "_svc", "alice", "Alice.Smith", "u-1", "1a", "7_", "a-", "a" * 32])
def test_an_ordinary_name_is_given_back_unchanged(name: str) -> None:
    assert parse_user_name(name) == name
    assert parse_user_name(name, qualified=True) == name


@pytest.mark.parametrize("name", ["alice@example", "alice@a.b-c.example.com", "alice@" + "a" * 64, "a.b@7"])
def test_a_qualified_name_is_a_name_only_where_it_is_allowed(name: str) -> None:
    assert parse_user_name(name, qualified=True) == name
    assert parse_user_name(name) is None


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.text("aZ09._-@'\n /\u212a", max_size=40))
def test_what_passes_is_plain_ascii_and_cannot_leave_its_place(text: str) -> None:
    """Any text: a name is at most 32 characters, not digits alone, and holds nothing but letters, digits, ``._-``."""
    name = parse_user_name(text)
    if name is not None:
        assert name == text
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,31}", text, re.ASCII)
        assert ".." not in text
        assert not text.endswith(".")
        assert re.search("[A-Za-z_]", text)
        assert text.lower().isascii()


def test_root_is_refused_in_every_spelling_and_a_system_account_by_its_uid() -> None:
    """``root``, ``Root`` and ``daemon`` are in the grammar; the policy refuses them."""
    users = HelperConfig().users
    rules = Rules(
        min_uid=users.min_uid,
        max_uid=users.max_uid,
        deny_users=users.deny_users,
        denied_uids=(),
        deny_gids=(0,),
        allow_gids=None,
    )
    root = Account("root", 0, 0, (0,), "/root", "/bin/bash")
    for spelling in ("root", "Root", "ROOT"):
        asked = os_user_of(spelling, users.map, lowercase=users.lowercase, qualified=False)
        assert asked == "root"
        assert refusal(asked, root, rules) is RefusedReason.DENIED_USER
    daemon = Account("daemon", 1, 1, (1,), "/usr/sbin", "/usr/sbin/nologin")
    assert refusal(UserName("daemon"), daemon, rules) is RefusedReason.UID_OUT_OF_RANGE
