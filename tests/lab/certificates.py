"""An authority and certificates of it, made by openssl, whole or without the extensions that many lack."""

import subprocess
from pathlib import Path
from typing import Final, NamedTuple

WHOLE: Final = {"basicConstraints": "critical,CA:TRUE", "keyUsage": "critical,keyCertSign,cRLSign"}
KEY_IDENTIFIERS: Final = {"subjectKeyIdentifier": "hash", "authorityKeyIdentifier": "keyid"}


class Certificate(NamedTuple):
    """A key and its certificate, both in PEM."""

    key: Path
    cert: Path


def authority(directory: Path, name: str = "authority", **changes: str | None) -> Certificate:
    """Make an authority; ``changes`` of its extensions, None for one that it lacks."""
    extensions = {**WHOLE, "subjectKeyIdentifier": "hash", **changes}
    made = Certificate(directory / f"{name}.key", directory / f"{name}.pem")
    settings = directory / f"{name}.cnf"
    head = f"[req]\ndistinguished_name=name\nx509_extensions=extensions\nprompt=no\n[name]\nCN={name}\n[extensions]\n"
    settings.write_text(head + _lines(extensions), encoding="ascii")
    new = ("-newkey", "rsa:2048", "-nodes", "-days", "2", "-config", str(settings))
    _openssl("req", "-x509", *new, "-keyout", str(made.key), "-out", str(made.cert))
    made.cert.chmod(0o644)
    return made


def issued(directory: Path, by: Certificate, names: str, name: str = "broker", **changes: str | None) -> Certificate:
    """Have an authority issue a certificate for ``names``, as openssl writes them; ``changes`` as above."""
    extensions = {"basicConstraints": "CA:FALSE", "subjectAltName": names, **KEY_IDENTIFIERS, **changes}
    made = Certificate(directory / f"{name}.key", directory / f"{name}.pem")
    request, settings = directory / f"{name}.csr", directory / f"{name}.ext"
    # openssl adds both identifiers by itself unless it is told not to: openssl-x509(1)
    settings.write_text(_lines({key: value or "none" for key, value in extensions.items()}), encoding="ascii")
    _openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", str(made.key), "-out",
             str(request))  # fmt: skip
    of = ("-CA", str(by.cert), "-CAkey", str(by.key), "-CAcreateserial", "-days", "2")
    _openssl("x509", "-req", "-in", str(request), *of, "-out", str(made.cert), "-extfile", str(settings))
    return made


def _lines(extensions: dict[str, str | None]) -> str:
    return "".join(f"{key}={value}\n" for key, value in extensions.items() if value is not None)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
