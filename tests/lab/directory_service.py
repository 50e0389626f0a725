"""A directory service that a test makes say what it likes, or nothing: a real NSS module, loaded by the real libc.

Its table has a line for each name: ``name how answered_name uid gid home``. ``how`` is ``answer``; ``hang``, in the
look-up of the user, with a child that hangs, too, or ``groups-hang``, in that of the groups; ``unavailable`` (as
nss-pam-ldapd says it when its daemon is away: with ENOENT) or ``again``; ``many``, an answer with 5,000 groups. It has
one group with a name, ``large``, which takes much room, and notes for which it was asked. The module is found by
LD_LIBRARY_PATH, and asked by who sees our nsswitch.conf: a program that is started in a mount namespace of its own.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_SOURCE: Final = r"""
#include <errno.h>
#include <grp.h>
#include <nss.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct line { char name[64], how[32], answered[64], home[256]; unsigned uid, gid; };

static int find(const char *name, struct line *found) {
  FILE *table = fopen(TABLE, "re");
  int is_there = 0;
  while (table && !is_there &&
         fscanf(table, "%63s %31s %63s %u %u %255s", found->name, found->how, found->answered, &found->uid,
                &found->gid, found->home) == 6)
    is_there = !strcmp(found->name, name);
  if (table) fclose(table);
  return is_there;
}

static void hang(void) { for (;;) pause(); }

enum nss_status _nss_kprtest_getpwnam_r(const char *name, struct passwd *entry, char *text, size_t size, int *error) {
  struct line line;
  if (!find(name, &line)) return NSS_STATUS_NOTFOUND;
  if (!strcmp(line.how, "hang")) { fork(); hang(); }
  if (!strcmp(line.how, "unavailable")) { *error = ENOENT; return NSS_STATUS_UNAVAIL; }
  if (!strcmp(line.how, "again")) { *error = EAGAIN; return NSS_STATUS_TRYAGAIN; }
  if (size < 512) { *error = ERANGE; return NSS_STATUS_TRYAGAIN; }
  entry->pw_name = strcpy(text, line.answered);
  entry->pw_dir = strcpy(text + 128, line.home);
  entry->pw_passwd = entry->pw_gecos = strcpy(text + 400, "");
  entry->pw_shell = strcpy(text + 410, "/bin/sh");
  entry->pw_uid = line.uid;
  entry->pw_gid = line.gid;
  return NSS_STATUS_SUCCESS;
}

enum nss_status _nss_kprtest_getgrnam_r(const char *name, struct group *entry, char *text, size_t size, int *error) {
  FILE *asked = fopen(TABLE ".asked", "r+e");
  if (asked) { fseek(asked, 0, SEEK_END); fprintf(asked, "%s\n", name); fclose(asked); }
  if (strcmp(name, "large")) return NSS_STATUS_NOTFOUND;
  if (size < 1000000) { *error = ERANGE; return NSS_STATUS_TRYAGAIN; }
  static char *nobody[] = {NULL};
  *entry = (struct group){strcpy(text, name), text + 6, 70002, nobody};
  return NSS_STATUS_SUCCESS;
}

enum nss_status _nss_kprtest_initgroups_dyn(const char *name, gid_t group, long *start, long *size, gid_t **groups,
                                            long limit, int *error) {
  struct line line;
  if (!find(name, &line)) return NSS_STATUS_NOTFOUND;
  if (!strcmp(line.how, "groups-hang")) hang();
  int wanted = strcmp(line.how, "many") ? 0 : 5000;
  for (int n = 0; n < wanted; n++) {
    if (*start == *size) {
      *size = *size ? *size * 2 : 64;
      *groups = realloc(*groups, *size * sizeof(gid_t));
    }
    (*groups)[(*start)++] = 3000000 + n;
  }
  return NSS_STATUS_SUCCESS;
}
"""


class DirectoryService:
    """The module, its table and what makes a program ask it; all below one directory of root's."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o755)
        self.environment = {"LD_LIBRARY_PATH": str(directory)}
        self._table, self._switch = directory / "table", directory / "nsswitch.conf"
        self._pam, self._stage = directory / "pam", directory / "account-stage"
        source = directory / "module.c"
        source.write_text(_SOURCE, encoding="ascii")
        module = directory / "libnss_kprtest.so.2"
        define = f'-DTABLE="{self._table}"'
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", define, "-o", str(module), str(source)], check=True)
        self.switches_to("files kprtest")
        self.reset()
        for path in (self._switch, self._pam, self._table):
            path.chmod(0o644)

    def reset(self) -> None:
        """Hold nobody, and have the host's own PAM stack."""
        self.holds([])
        self.switches_to("files kprtest")
        shutil.copyfile("/etc/pam.d/knime-peruser", self._pam)

    def holds(self, lines: Sequence[str]) -> None:
        """Replace the table."""
        self._table.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")

    def switches_to(self, sources: str) -> None:
        """Have users and groups looked for in these sources: nsswitch.conf(5)."""
        self._switch.write_text(f"passwd: {sources}\ngroup: {sources}\nshadow: files\n", encoding="ascii")

    def asked_groups(self) -> list[str]:
        """Give the groups that it was asked for since this was asked last; from the first time on it notes them."""
        asked = self._table.with_name("table.asked")
        names = asked.read_text(encoding="ascii").split() if asked.exists() else []
        asked.write_text("", encoding="ascii")
        return names

    def pam_permits(self) -> None:
        """Let PAM's account stage ask nobody: pam_permit(8)."""
        self._pam.write_text("account required pam_permit.so\n", encoding="ascii")

    def pam_denies(self) -> None:
        """Let PAM's account stage say "permission denied", as SSSD's does for want of a verdict: pam_access(8)."""
        rules = self._stage.with_name("access.conf")
        rules.write_text("-:ALL:ALL\n", encoding="ascii")
        self._pam.write_text(f"account required pam_access.so accessfile={rules}\n", encoding="ascii")

    def account_stage(self, shell: str) -> None:
        """Let PAM's account stage be a line of shell that knows $PAM_USER: pam_exec(8)."""
        self._stage.write_text(f"#!/bin/sh\n{shell}\n", encoding="ascii")
        self._stage.chmod(0o755)
        self._pam.write_text(f"account required pam_exec.so {self._stage}\n", encoding="ascii")

    def seen_by(self, command: Sequence[str], *mounts: str) -> list[str]:
        """Give the command as it is started where all this is seen; ``mounts``: lines of shell that mount more."""
        binds = [
            f"mount --bind {self._switch} /etc/nsswitch.conf",
            f"mount --bind {self._pam} /etc/pam.d/knime-peruser",
            *mounts,
            'exec "$@"',
        ]
        return [
            "/usr/bin/unshare",
            "--mount",
            "--propagation",
            "private",
            "/bin/sh",
            "-ec",
            "\n".join(binds),
            "sh",
            *command,
        ]
