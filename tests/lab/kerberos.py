"""A Kerberos realm for a test: a real KDC of MIT's on loopback, with a database and configuration of its own.

Everything is below one directory; nothing of the machine's own Kerberos is read or written. Only root starts it.
"""

import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Final

from tests.lab.processes import PATH, end, process_id, start, tail, wait_for

REALM: Final = "KPR.TEST"
_CONFIGURATION: Final = """\
[libdefaults]
 default_realm = {realm}
 dns_lookup_kdc = false
 dns_lookup_realm = false
 rdns = false
 udp_preference_limit = 1
[realms]
 {realm} = {{
  kdc = 127.0.0.1:{port}
 }}
"""
_KDC: Final = """\
[kdcdefaults]
 kdc_listen = ""
 kdc_tcp_listen = 127.0.0.1:{port}
[realms]
 {realm} = {{
  database_name = {directory}/principal
  key_stash_file = {directory}/stash
  max_life = 1h
 }}
"""


class Realm:
    """One realm; ``create`` starts its KDC, ``remove`` ends it. Its directory goes with the installation's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.configuration = directory / "krb5.conf"
        self.keytabs = directory / "keytabs"
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the database and start the KDC on a free port of loopback."""
        self._directory.mkdir(mode=0o755)
        self.keytabs.mkdir(mode=0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        values = {"realm": REALM, "port": port, "directory": self._directory}
        self.configuration.write_text(_CONFIGURATION.format(**values), encoding="ascii")
        (self._directory / "kdc.conf").write_text(_KDC.format(**values), encoding="ascii")
        self._run("/usr/sbin/kdb5_util", "create", "-s", "-P", secrets.token_hex(16))
        log = self._directory / "kdc.log"
        command = ["/usr/sbin/krb5kdc", "-n"]
        process = self._process = start(command, environment=self._environment(), log=log, umask=0o077)

        def is_up() -> bool:
            assert process.poll() is None, tail(log)
            with socket.socket() as connection:
                return connection.connect_ex(("127.0.0.1", port)) == 0

        wait_for(is_up, 30.0, "the KDC")

    def keytab(self, name: str, uid: int) -> Path:
        """Make a principal of that name and give its keytab, which only the uid can read."""
        path = self.keytabs / f"{name}.keytab"
        self._run("/usr/sbin/kadmin.local", "-q", f"addprinc -randkey {name}")
        self._run("/usr/sbin/kadmin.local", "-q", f"ktadd -k {path} {name}")
        os.chown(path, uid, 0)
        path.chmod(0o400)
        return path

    def remove(self) -> None:
        """End the KDC."""
        if self._process is not None:
            end(process_id(self._process.pid))
            self._process.wait()

    def _run(self, *command: str) -> None:
        environment = {"PATH": PATH, **self._environment()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or "while" in done.stderr:  # kadmin.local tells errors in words: "... while adding ..."
            raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")

    def _environment(self) -> dict[str, str]:
        return {"KRB5_CONFIG": str(self.configuration), "KRB5_KDC_PROFILE": str(self._directory / "kdc.conf")}
