"""A directory for a machine: slapd with users of its own, SSSD in front of it, as a site has them.

Written before the machine is booted; afterwards entries are changed as the directory's administrator changes them,
over slapd's local socket. Users have no home and have never logged in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tests.lab.machine import Machine

SUFFIX: Final = "dc=lab"
FIRST_UID: Final = 10_000
EVERYBODY: Final = ("knime-users", 9000)
"""The group of all of them, and its gid: their primary one."""
ANALYSTS: Final = ("analysts", 9001)
"""A supplementary group of every tenth user."""


def user_name(number: int) -> str:
    """Give the name of a user of the directory."""
    return f"u{number:04}"


def uid(name: str) -> int:
    """Give the uid of a user of the directory."""
    return FIRST_UID + int(name[1:])


def user_entry(name: str, uid_number: int, gid_number: int = EVERYBODY[1]) -> str:
    """Give a user in LDIF."""
    return (
        f"dn: uid={name},{SUFFIX}\nobjectClass: inetOrgPerson\nobjectClass: posixAccount\nobjectClass: shadowAccount\n"
        f"uid: {name}\ncn: {name}\nsn: {name}\nuidNumber: {uid_number}\ngidNumber: {gid_number}\n"
        f"homeDirectory: /home/{name}\nloginShell: /usr/sbin/nologin\n\n"
    )


def group_entry(name: str, gid: int, members: Sequence[str]) -> str:
    """Give a group in LDIF."""
    lines = "".join(f"memberUid: {member}\n" for member in members)
    return f"dn: cn={name},{SUFFIX}\nobjectClass: posixGroup\ncn: {name}\ngidNumber: {gid}\n{lines}\n"


class Directory:
    """slapd and SSSD of one machine."""

    def __init__(self, machine: Machine, users: int) -> None:
        self._machine = machine
        self.names = [user_name(number) for number in range(1, users + 1)]
        self.analysts = self.names[9::10]

    def write(self) -> None:
        """Write configuration and entries; ``LOAD`` is to be run in the machine before it is booted."""
        self._machine.write("/etc/ldap/slapd.conf", _SLAPD)
        self._machine.write("/etc/default/slapd", _DEFAULT)
        self._machine.write("/etc/sssd/sssd.conf", _SSSD, 0o600)
        entries = [f"dn: {SUFFIX}\nobjectClass: dcObject\nobjectClass: organization\ndc: lab\no: lab\n\n"]
        entries += [_POLICY]
        entries += [user_entry(name, uid(name)) for name in self.names]
        entries += [group_entry(*EVERYBODY, self.names), group_entry(*ANALYSTS, self.analysts)]
        self._machine.write("/var/lib/ldap-lab/entries.ldif", "".join(entries))

    LOAD: Final = (
        "slapadd -q -f /etc/ldap/slapd.conf -l /var/lib/ldap-lab/entries.ldif"
        " && chown -R openldap:openldap /var/lib/ldap-lab && systemctl enable -q sssd.service"
    )

    def add(self, *entries: str) -> None:
        """Add entries: ldapadd(1)."""
        self._change("".join(entries), "-a")

    def modify(self, user: str, change: str) -> None:
        """Change a user's entry; ``change`` as in ldif(5): "replace: uidNumber", then the attribute."""
        self._change(f"dn: uid={user},{SUFFIX}\nchangetype: modify\n{change}\n")

    def modify_group(self, group: str, change: str) -> None:
        """Change a group's entry."""
        self._change(f"dn: cn={group},{SUFFIX}\nchangetype: modify\n{change}\n")

    def delete(self, user: str) -> None:
        """Delete a user's entry."""
        self._change(f"dn: uid={user},{SUFFIX}\nchangetype: delete\n")

    def rename(self, user: str, new: str) -> None:
        """Give a user another name, as a member of its groups, too; uid and home stay."""
        self._change(f"dn: uid={user},{SUFFIX}\nchangetype: modrdn\nnewrdn: uid={new}\ndeleteoldrdn: 1\n")
        for group in (EVERYBODY[0], ANALYSTS[0]):
            if user in self._members(group):
                change = f"delete: memberUid\nmemberUid: {user}\n-\nadd: memberUid\nmemberUid: {new}"
                self.modify_group(group, change)

    def forget_cached(self) -> None:
        """Let SSSD ask anew for everything that it has cached: sss_cache(8)."""
        self._machine.run("sss_cache", "-E", check=False)

    @contextmanager
    def forgetting_unknown_users_after(self, seconds: int) -> Iterator[None]:
        """Let SSSD keep "no such user" for that time: entry_negative_timeout of sssd.conf(5), 15 s by default."""
        snippet = "/etc/sssd/conf.d/lab.conf"
        self._machine.write(snippet, f"[nss]\nentry_negative_timeout = {seconds}\n", 0o600)
        self._machine.run("systemctl", "restart", "sssd")
        try:
            yield
        finally:
            self._machine.run("rm", snippet)
            self._machine.run("systemctl", "restart", "sssd")

    def _members(self, group: str) -> list[str]:
        found = self._machine.run("ldapsearch", *_AS_ROOT, "-LLL", "-b", f"cn={group},{SUFFIX}", "memberUid")
        return [line.split()[1] for line in found.splitlines() if line.startswith("memberUid: ")]

    def _change(self, ldif: str, *options: str) -> None:
        self._machine.write("/var/lib/ldap-lab/change.ldif", ldif)
        self._machine.run("ldapmodify", *_AS_ROOT, *options, "-f", "/var/lib/ldap-lab/change.ldif")


_AS_ROOT: Final = ("-Q", "-Y", "EXTERNAL", "-H", "ldapi:///")
# A locked account is one only where a policy says so: ldap_pwdlockout_dn, sssd-ldap(5).
_POLICY: Final = f"""\
dn: ou=policies,{SUFFIX}
objectClass: organizationalUnit
ou: policies

dn: cn=ppolicy,ou=policies,{SUFFIX}
objectClass: device
objectClass: pwdPolicy
cn: ppolicy
pwdAttribute: userPassword
pwdLockout: TRUE

"""
_SLAPD: Final = f"""\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload ppolicy
pidfile /run/slapd/slapd.pid
authz-regexp gidNumber=0.uidNumber=0,cn=peercred,cn=external,cn=auth cn=admin,{SUFFIX}
database mdb
suffix {SUFFIX}
rootdn cn=admin,{SUFFIX}
directory /var/lib/ldap-lab
index objectClass,uid,uidNumber,gidNumber,memberUid,cn eq
overlay ppolicy
"""
_DEFAULT: Final = """\
SLAPD_CONF=/etc/ldap/slapd.conf
SLAPD_USER=openldap
SLAPD_GROUP=openldap
SLAPD_SERVICES="ldap://127.0.0.1:389/ ldapi:///"
"""
# The pauses of an outage are shorter than SSSD's defaults (a minute), for the tests' sake alone.
_SSSD: Final = f"""\
[sssd]
services = nss, pam, ifp
domains = lab
[domain/lab]
id_provider = ldap
auth_provider = none
access_provider = ldap
ldap_access_order = expire, ppolicy
ldap_account_expire_policy = shadow
ldap_uri = ldap://127.0.0.1
ldap_search_base = {SUFFIX}
ldap_schema = rfc2307
ldap_id_use_start_tls = false
offline_timeout = 3
offline_timeout_max = 3
offline_timeout_random_offset = 0
"""
