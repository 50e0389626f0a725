"""Owner, mode and ACL of a file in words, read from the kernel's own attributes: no getfacl is needed."""

import grp
import os
import pwd
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

_TAGS: Final = {0x01: "u:", 0x02: "u:", 0x04: "g:", 0x08: "g:", 0x10: "m:", 0x20: "o:"}
_NAMED: Final = (0x02, 0x08)


def owner_and_mode(path: Path) -> str:
    """Give ``user:group 0700``."""
    status = path.lstat()
    return f"{_user(status.st_uid)}:{_group(status.st_gid)} {status.st_mode & 0o7777:04o}"


def acls(path: Path) -> tuple[str, str]:
    """Give the access and the default ACL; "" where there is none, as with an access ACL that is the mode alone."""
    found = []
    for kind in ("access", "default"):
        with suppress(OSError):
            found.append(acl_text(os.getxattr(path, f"system.posix_acl_{kind}", follow_symlinks=False)))
            continue
        found.append("")
    return found[0], found[1]


def acl_text(attribute: bytes) -> str:
    """Give ``u::rwx g::--- o::---`` for what the kernel stores (linux/posix_acl_xattr.h)."""
    entries = []
    for tag, bits, owner in struct.iter_unpack("<HHI", attribute[4:]):
        name = (_user(owner) if tag == 0x02 else _group(owner)) if tag in _NAMED else ""
        rights = "".join(letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        entries.append(f"{_TAGS[tag]}{name}:{rights}")
    return " ".join(entries)


def _user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _group(gid: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)
