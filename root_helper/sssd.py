"""Is "no such user" the directory's word? SSSD says it, too, while its servers are gone and the user is not cached.

It trusts SSSD's own word on whether its domains are online: InfoPipe, sssd-ifp(5). No answer counts as offline.
"""

from pathlib import Path
from typing import Final

from root_helper.bus import BusError, call

_NAME: Final = "org.freedesktop.sssd.infopipe"
_PATH: Final = "/org/freedesktop/sssd/infopipe"
_TIMEOUT: Final = 2.0


def could_not_know() -> str | None:
    """Say why a "no such user" means nothing now, None where it counts."""
    if not _is_asked():
        return None
    try:
        (domains,) = call(_TIMEOUT, _NAME, _PATH, _NAME, "ListDomains")
        for domain in domains if isinstance(domains, list) else []:
            if call(_TIMEOUT, _NAME, str(domain), f"{_NAME}.Domains.Domain", "IsOnline") != [True]:
                return f"SSSD's domain {str(domain).rpartition('/')[2]} is offline"
    except (BusError, ValueError) as error:
        return f"SSSD does not say whether it is online (InfoPipe, package sssd-dbus): {error}"
    return None


def _is_asked() -> bool:
    """Tell whether the name service switch asks SSSD for users: nsswitch.conf(5)."""
    try:
        lines = Path("/etc/nsswitch.conf").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    sources = [line.partition("#")[0].split() for line in lines if line.startswith("passwd:")]
    return any("sss" in words for words in sources)
