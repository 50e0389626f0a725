"""Who is this user? The only file that asks NSS, through pwd and grp; it runs in a worker, never in the supervisor.

It trusts nothing that it is told beyond what it says: policy.py decides what an account may do. A question that could
not be answered is ``Undecided``, never "no such user": a directory that is down must cost nobody a job.
"""

import ctypes
import grp
import os
import pwd
from collections.abc import Iterable, Sequence
from typing import Final

from protocol.messages import RefusedReason
from protocol.names import UserName
from root_helper import pam, sssd
from root_helper.config import HelperConfig
from root_helper.policy import Account, Rules, Undecided, refusal

_libc: Final = ctypes.CDLL(None)


def decide(name: UserName, config: HelperConfig) -> tuple[Account | None, RefusedReason | None]:
    """Look the name up and decide; the account is None where NSS knows none.

    Raises:
        Undecided: it could not be decided now.
    """
    account = account_of(name)
    if account is None:
        if why := sssd.could_not_know():
            raise Undecided(f"NSS knows no {name}, but {why}")
        return None, RefusedReason.UNKNOWN_USER
    reason = refusal(name, account, rules(config))
    if reason is None and not pam.may_be_used(account.name):
        reason = RefusedReason.ACCOUNT_EXPIRED
    return account, reason


def account_of(name: UserName) -> Account | None:
    """Give the account, its groups asked once, so that the list that is checked is the list that is set.

    Raises:
        Undecided: NSS failed.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        _must_be_absent("getpwnam_r", name)
        return None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    unsigned = tuple(sorted({gid % 2**32 for gid in (entry.pw_gid, *groups)}))  # gid_t is unsigned, getgrouplist's int
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid % 2**32, unsigned, entry.pw_dir, entry.pw_shell)


def rules(config: HelperConfig) -> Rules:
    """Resolve the configured names to ids, which alone are compared.

    Raises:
        Undecided: a group of ``allow_groups`` cannot be found; one of ``deny_groups`` that does not exist is skipped.
    """
    users = config.users
    denied = (group_id(name) for name in users.deny_groups)
    return Rules(
        min_uid=users.min_uid,
        max_uid=users.max_uid,
        deny_users=frozenset(users.deny_users),
        denied_uids=_own_uids(config),
        deny_gids=frozenset(gid for gid in denied if gid is not None),
        allow_gids=frozenset(_known(users.allow_groups)) if users.allow_groups else None,
    )


def group_id(name: str) -> int | None:
    """Give the gid of a group, None where there is none.

    Raises:
        Undecided: NSS failed.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        _must_be_absent("getgrnam_r", name)
        return None


def user_ids(name: str) -> tuple[int, int] | None:
    """Give uid and primary gid of a local account of the configuration, None where there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def _must_be_absent(look_up: str, name: str) -> None:
    """Ask once more, for the status: pwd and grp raise KeyError for whatever NSS answers, also when it is down.

    Raises:
        Undecided: the answer was an error, or there is such an entry by now.
    """
    record, text, found = ctypes.create_string_buffer(256), ctypes.create_string_buffer(2**16), ctypes.c_void_p()
    size = ctypes.c_size_t(len(text))
    status = getattr(_libc, look_up)(name.encode(), record, text, size, ctypes.byref(found))
    if status or found:  # not even ENOENT is "absent": nss-pam-ldapd says so while its daemon is away
        raise Undecided(f"NSS look-up of {name}: {os.strerror(status) if status else 'it is there by now'}")


def _own_uids(config: HelperConfig) -> frozenset[int]:
    """Give the uids that must never have an executor: the daemons' own and the installation's owner."""
    own = (user_ids(name) for name in (config.socket.listener_user, config.socket.gate_user))
    return frozenset((os.stat(config.executor.home).st_uid, *(ids[0] for ids in own if ids is not None)))


def _known(names: Sequence[str]) -> Iterable[int]:
    for name in names:
        gid = group_id(name)
        if gid is None:
            raise Undecided(f"users.allow_groups: NSS knows no group {name}")
        yield gid
