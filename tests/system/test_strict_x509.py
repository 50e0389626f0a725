"""A broker's certificate that openssl accepts and the Python of Debian 13 does not."""

import json
import time
from pathlib import Path

import pytest

from tests.lab import certificates
from tests.lab.booted_site import LISTENER, BootedSite
from tests.lab.processes import wait_for
from tests.lab.toml import dumps


@pytest.mark.debian_13
def test_a_certificate_without_key_identifiers_is_named(site: BootedSite, tmp_path: Path) -> None:
    """Debian 13's Python refuses it, Debian 12's does not: the listener's log and check say that, and the cure."""
    by = certificates.authority(tmp_path)
    made = certificates.issued(tmp_path, by, "IP:127.0.0.1", authorityKeyIdentifier=None, subjectKeyIdentifier=None)
    for name, file in {"key": made.key, "cert": made.cert, "ca": by.cert}.items():
        site.machine.write(f"/srv/tls/{name}.pem", file.read_text(encoding="ascii"))
    site.machine.write("/srv/tls/front.py", _FRONT)
    site.machine.run("systemd-run", "--unit=tls-front", "--collect", "python3", "/srv/tls/front.py")
    began = time.time()
    tables = {"urls": ["amqps://knime-listener@127.0.0.1:5671/%2F"], "ca_file": "/srv/tls/ca.pem"}
    site.spoil(LISTENER, dumps({"broker": tables}))
    site.systemctl("restart", LISTENER)

    def told() -> str:
        return " ".join(entry["MESSAGE"] for entry in site.machine.journal("-u", LISTENER, f"--since=@{began:.0f}"))

    try:
        wait_for(lambda: "Python 3.13 and later refuse it" in told(), 30, "the listener's reason")
        findings = json.loads(site.machine.run("knime-peruser", "check", "--json", check=False))["findings"]
    finally:
        site.systemctl("stop", "tls-front")
    (tls,) = [one for one in findings if one["subject"] == "broker.tls"]
    assert (tls["level"], tls["seen"]) == ("fault", "127.0.0.1: Missing Authority Key Identifier")
    assert "authorityKeyIdentifier=keyid" in tls["advice"]


_FRONT = """\
import socket, ssl

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/srv/tls/cert.pem", "/srv/tls/key.pem")
with socket.create_server(("127.0.0.1", 5671)) as listening:
    while True:
        connection, _ = listening.accept()
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()
"""
