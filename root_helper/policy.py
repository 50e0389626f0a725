"""May this account have an executor, and if not, why? Pure: facts in, a reason or None out.

It trusts the configuration alone. What NSS said of the account is checked here as if a stranger had said it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from protocol.messages import RefusedReason
from protocol.names import UserName, parse_user_name

MAX_UID: Final = 2**32 - 2
"""(uid_t)-1 means "leave unchanged" to setresuid(2) and must never reach it."""
SYSTEMD_UIDS: Final = range(61184, 65536)
"""Dynamic users, nobody and 16-bit -1: https://systemd.io/UIDS-GIDS."""


class Undecided(Exception):
    """The directory service or PAM did not decide; the text says which question was asked."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account as NSS gave it; ``groups`` is what getgrouplist(3) said, asked once, the primary gid included."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may have an executor: names from the configuration, and the ids that the worker resolved them to."""

    min_uid: int
    max_uid: int
    deny_users: Collection[str]
    denied_uids: Collection[int]
    deny_gids: Collection[int]
    allow_gids: Collection[int] | None


def os_user_of(user: str, users_map: Mapping[str, str], *, lowercase: bool, qualified: bool) -> UserName | None:
    """Give the OS user that a KNIME user stands for, or None where either name is outside the grammar."""
    knime_user = parse_user_name(user, qualified=qualified)
    if knime_user is None:
        return None
    mapped = users_map.get(knime_user, knime_user.lower() if lowercase else knime_user)
    return parse_user_name(mapped, qualified=qualified)


def refusal(asked: UserName, account: Account, rules: Rules) -> RefusedReason | None:
    """Say why the account that NSS gave for the name asked may have no executor, or None where it may."""
    if account.name != asked or account.name in rules.deny_users or account.uid in rules.denied_uids:
        return RefusedReason.DENIED_USER
    if not _user_id(account.uid, rules) or not _group_ids(account):
        return RefusedReason.UID_OUT_OF_RANGE
    groups = set(account.groups)
    if 0 in groups or not groups.isdisjoint(rules.deny_gids):
        return RefusedReason.DENIED_USER
    if rules.allow_gids is not None and groups.isdisjoint(rules.allow_gids):
        return RefusedReason.NOT_IN_GROUP
    return None


def _user_id(uid: int, rules: Rules) -> bool:
    return 0 < uid <= MAX_UID and uid not in SYSTEMD_UIDS and rules.min_uid <= uid <= rules.max_uid


def _group_ids(account: Account) -> bool:
    gid_allowed = 0 < account.gid <= MAX_UID and account.gid not in SYSTEMD_UIDS
    return gid_allowed and all(0 <= gid <= MAX_UID for gid in account.groups)


def directory_name(user: str, os_user: str, owners: Mapping[str, str]) -> str:
    """Give the name of the user's workspace and temp directory.

    It is the OS user's where that is the KNIME user's own or ``owners`` gives it to this KNIME user, and
    ``<os user>+<KNIME user>`` otherwise: ``+`` is in no user name, so no two users share a directory.
    """
    return os_user if user == owners.get(os_user, os_user) else f"{os_user}+{user}"
