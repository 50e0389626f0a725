"""Certificates that Python 3.13 and later refuse, and openssl, browsers and older Pythons accept: which, and the cure.

From 3.13 on ssl.create_default_context sets VERIFY_X509_STRICT: extensions that RFC 5280 wants must be there. OpenSSL's
own words name what is missing, and nobody who made the certificate with a script of ten years ago knows what to do.
"""

import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SINCE: Final = "Python 3.13 and later refuse it (openssl accepts it)"
_OTHER: Final = "issue it again with the extensions that RFC 5280, section 4.2, asks for"
_CURES: Final[Mapping[int, str]] = MappingProxyType(
    {
        83: "an issuer without a name: make the authority again with a subject",
        85: "issue it again with the extensions subjectKeyIdentifier=hash and authorityKeyIdentifier=keyid",
        86: "make the authority again with the extension subjectKeyIdentifier=hash, then issue the certificate again",
        88: "issue it again with a subject, or with subjectAltName marked critical",
        89: "make the authority's certificate again, from the same key, with basicConstraints=critical,CA:TRUE",
        92: "make the authority's certificate again, from the same key, with keyUsage=critical,keyCertSign,cRLSign",
    }
)
_STRICT: Final = range(80, 94)
"""What OpenSSL looks at with X509_V_FLAG_X509_STRICT alone: check_extensions in crypto/x509/x509_vfy.c, x509_vfy.h."""


def cure(error: object) -> str | None:
    """Return why Python refuses the certificate and what to do; None if it is another error than that."""
    if not isinstance(error, ssl.SSLCertVerificationError) or error.verify_code not in _STRICT:
        return None
    return f"{SINCE}: {_CURES.get(error.verify_code, _OTHER)}"


def is_strict(context: ssl.SSLContext) -> bool:
    """Return whether the context refuses such certificates."""
    return bool(context.verify_flags & ssl.VERIFY_X509_STRICT)


def be_strict(context: ssl.SSLContext) -> ssl.SSLContext:
    """Have a context refuse what Python 3.13 refuses, whatever this Python is; return it."""
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
