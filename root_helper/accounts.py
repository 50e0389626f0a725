"""Who is this user? The only file that asks NSS; it runs in a worker, never in the supervisor.

It trusts nothing that it is told beyond what it says: policy.py decides what an account may do. A question that could
not be answered is ``Undecided``, never "no such user": a directory that is down must cost nobody a job.
"""

import ctypes
import errno
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
_ROOM: Final = (2**16, 2**20, 2**24)
"""Bytes for an entry; a group names all its members."""
_DIRECTORYS_WORD: Final = {RefusedReason.UNKNOWN_USER, RefusedReason.NOT_IN_GROUP, RefusedReason.ACCOUNT_EXPIRED}
"""What SSSD says, too, of whom or what it had not kept when its servers went away."""


class _Group(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("gid", ctypes.c_uint32),
        ("members", ctypes.c_void_p),
    )  # struct group, getgrnam(3)


def decide(name: UserName, config: HelperConfig) -> tuple[Account | None, RefusedReason | None]:
    """Look the name up and decide; the account is None where NSS knows none.

    Raises:
        Undecided: it could not be decided now.
    """
    account = account_of(name)
    reason = refusal(name, account, rules(config)) if account else RefusedReason.UNKNOWN_USER
    if account and reason is None and not pam.may_be_used(account.name):
        reason = RefusedReason.ACCOUNT_EXPIRED
    if reason in _DIRECTORYS_WORD and (why := sssd.could_not_know()):
        raise Undecided(f"{reason} is what is said of {name}, but {why}")
    return account, reason


def account_of(name: UserName) -> Account | None:
    """Give the account, its groups asked once, so that the list that is checked is the list that is set.

    Raises:
        Undecided: NSS failed.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        if _is_there("getpwnam_r", name, ctypes.create_string_buffer(256)):
            raise Undecided(f"NSS look-up of {name}: it is there by now") from None
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
    group = _Group()
    return group.gid if _is_there("getgrnam_r", name, group) else None


def user_ids(name: str) -> tuple[int, int] | None:
    """Give uid and primary gid of a local account of the configuration, None where there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def _is_there(look_up: str, name: str, record: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> bool:
    """Ask libc itself: pwd and grp raise KeyError for whatever NSS answers, also when it is down.

    Raises:
        Undecided: the answer was an error. Not even ENOENT is "absent": nss-pam-ldapd says so while its daemon is away.
    """
    found, status = ctypes.c_void_p(), errno.ERANGE
    for size in _ROOM:
        text = ctypes.create_string_buffer(size)
        arguments = (name.encode(), ctypes.byref(record), text, ctypes.c_size_t(size), ctypes.byref(found))
        status = getattr(_libc, look_up)(*arguments)
        if status != errno.ERANGE:
            break
    if status:
        raise Undecided(f"NSS look-up of {name}: {os.strerror(status)}")
    return bool(found)


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
