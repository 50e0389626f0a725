"""Root for as long as a secret is read, the listener's account from then on: what touches the network is not root.

It trusts the configured account's entry in NSS. What comes after ``become`` has that account's ids and no group but
its own, and no way back: that is verified, not assumed.
"""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker_listener.operator.configuration import Configuration, broker_password
from broker_listener.operator.outcome import Outcome, Stopped

if TYPE_CHECKING:
    from broker_listener.operator.broker import Session


@contextmanager
def operator_connection(configuration: Configuration) -> Iterator["Session"]:
    """Read the password, become the listener's account for good, and connect to the broker.

    Raises:
        Stopped: no password, no account, or no broker.
    """
    password = broker_password(configuration)
    become(configuration.helper.socket.listener_user)
    from broker_listener.operator.broker import session  # noqa: PLC0415 - pika is not loaded while this is root

    with session(configuration.listener.broker, password) as connected:
        yield connected


def become(account: str) -> None:
    """Become the account for good where this process is root; do nothing where it is not.

    Raises:
        Stopped: there is no such account, it is root's, or the kernel did not do as it was told.
    """
    if os.geteuid() != 0 and os.getuid() != 0:
        return
    try:
        entry = pwd.getpwnam(account)
    except KeyError:
        why = (
            f"there is no account {account}, which this command becomes before it talks to the broker: systemd-sysusers"
        )
        raise Stopped(Outcome.USAGE, why) from None
    uid, gid = entry.pw_uid, entry.pw_gid
    if 0 in (uid, gid):
        raise Stopped(
            Outcome.USAGE, f"{account}: an account of its own, not root's, is expected (socket.listener_user)"
        )
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or _can_return():
        raise Stopped(Outcome.NOT_PERMITTED, f"could not become {account} for good; nothing was sent to the broker")
    os.environ["HOME"] = "/nonexistent"  # root's own is of no use, and libraries look there for files


def _can_return() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True
