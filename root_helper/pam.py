"""PAM's account stage: may this account be used now? Nothing is authenticated, no session is opened (pam_acct_mgmt(3)).

It trusts the stack that root configured as ``knime-peruser``. Accounts that a directory has locked, expired or barred
from this host show only here: SSSD's shadow map is empty. libpam is called through ctypes, in a worker.
"""

import ctypes
from typing import Final

from root_helper.policy import Undecided

SERVICE: Final = "knime-peruser"
SERVICE_FILE: Final = f"/etc/pam.d/{SERVICE}"
"""Without it PAM would ask the stack ``other``."""
_SUCCESS: Final = 0
_SILENT: Final = 0x8000
_NOT_USABLE: Final = frozenset({6, 12, 13, 27})  # PERM_DENIED, NEW_AUTHTOK_REQD, ACCT_EXPIRED, AUTHTOK_EXPIRED


class _Conversation(ctypes.Structure):
    _fields_ = (("function", ctypes.c_void_p), ("data", ctypes.c_void_p))  # no function: there is nobody to ask


def may_be_used(account: str) -> bool:
    """Ask the account stage.

    Raises:
        Undecided: every answer but yes and no: a stack without the directory's module must park nobody's jobs.
    """
    try:
        libpam = ctypes.CDLL("libpam.so.0")
    except OSError as error:
        raise Undecided(f"PAM: {error}") from error
    libpam.pam_strerror.restype = ctypes.c_char_p
    handle, conversation = ctypes.c_void_p(), _Conversation(None, None)
    code = libpam.pam_start(SERVICE.encode(), account.encode(), ctypes.byref(conversation), ctypes.byref(handle))
    if code == _SUCCESS:
        code = libpam.pam_acct_mgmt(handle, _SILENT)
        text = libpam.pam_strerror(handle, code).decode("ascii", "backslashreplace")
        libpam.pam_end(handle, code)
    else:
        text = "pam_start failed"
    if code not in _NOT_USABLE | {_SUCCESS}:
        raise Undecided(f"PAM's account stage, service {SERVICE}: {text} ({code})")
    return bool(code == _SUCCESS)
