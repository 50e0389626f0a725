"""The access and the default ACL of a private directory (acl(5)); the only file that imports posix1e.

It trusts the configuration and the ids that the caller resolved. It touches the one directory whose descriptor it is
given, never a name and never what is below, and looks nobody up: libacl takes a number for an id without asking NSS.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

import posix1e


@dataclass(frozen=True, slots=True)
class PrivateAcl:
    """What a private directory's access ACL and default ACL are to be."""

    entries: posix1e.ACL

    def apply(self, directory: int) -> None:
        """Bring both ACLs of the directory to this one and read them back; does nothing where they are right.

        Raises:
            OSError: EOPNOTSUPP on a file system without POSIX ACLs, EIO where something else was read back.
        """
        # By the descriptor's name in /proc: given the descriptor itself, applyto() ignores its second argument and
        # sets the access ACL (pylibacl 0.7.0 to 0.7.3).
        path = f"/proc/self/fd/{directory}"
        try:
            if not self._is_on(path):
                # PRIVILEGED: needs the directory's owner; that is root for one being made, and for an existing one
                # the account itself, as which the caller then acts.
                self.entries.applyto(path, posix1e.ACL_TYPE_ACCESS)
                self.entries.applyto(path, posix1e.ACL_TYPE_DEFAULT)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise OSError(error.errno, "the file system has no POSIX ACLs") from error
            raise
        if not self._is_on(path):
            raise OSError(errno.EIO, "the ACL read back is not the one set")

    def _is_on(self, path: str) -> bool:
        return bool(self.entries == posix1e.ACL(file=path) and self.entries == posix1e.ACL(filedef=path))


def private_acl(extra: Sequence[str]) -> PrivateAcl:
    """Give the ACL with everything for the owner, nothing for group and others, and more, such as ``g:1234:r-x``.

    Raises:
        ValueError: where two entries are about the same user or group.
    """
    entries = posix1e.ACL(text=",".join(["u::rwx", "g::---", "o::---", *extra]))
    if extra:
        entries.calc_mask()  # without one, named entries are invalid: acl(5), "VALID ACLs"
    if not entries.valid():
        raise ValueError("two entries are about the same user or group")
    return PrivateAcl(entries)
