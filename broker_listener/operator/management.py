"""RabbitMQ's management interface, read: what AMQP itself does not tell. It is asked only where an operator names it.

Its answers are the broker's and are trusted as far as their JSON goes. The password goes into one header and nowhere
else; over https the certificate and the name are verified.
"""

import base64
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
)

from broker_listener.config import read_secret
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.secret_text import NotOneLineError, doubt, one_line
from broker_listener.strict_x509 import cure

TIMEOUT: Final = 5.0
MAX_ANSWER: Final = 2**24

Object = dict[str, Any]


class Unavailable(Exception):
    """No answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Management:
    """Where it is, and as whom it is asked, for one virtual host."""

    base: str
    vhost: str
    credentials: str = field(repr=False)
    ca_file: str = ""
    doubt: str | None = None
    """What in the password was probably not meant."""

    def queue(self, name: str) -> Object | None:
        """Give a queue, None where there is none."""
        return cast("Object | None", self._get("queues", name))

    def exchange(self, name: str) -> Object | None:
        """Give an exchange, None where there is none."""
        return cast("Object | None", self._get("exchanges", name))

    def bindings_of(self, exchange: str) -> list[Object]:
        """Give the bindings that lead out of an exchange."""
        return _objects(self._get("exchanges", exchange, "bindings", "source"))

    def consumers(self) -> list[Object]:
        """Give the virtual host's consumers."""
        return _objects(self._get("consumers"))

    def everything(self, kind: str) -> list[Object]:
        """Give the virtual host's ``queues``, ``exchanges`` or ``bindings``."""
        return _objects(self._get(kind))

    def permissions(self, account: str) -> Object | None:
        """Give what an account may do in the virtual host."""
        return cast("Object | None", self._get("permissions", account))

    def version(self) -> str:
        """Give the broker's version."""
        overview = self._answer("overview")
        return str(overview.get("rabbitmq_version", "")) if isinstance(overview, dict) else ""

    def _get(self, kind: str, *names: str) -> object:
        return self._answer("/".join([kind, *(quote(name, safe="") for name in (self.vhost, *names))]))

    def _answer(self, path: str) -> object:
        request = Request(f"{self.base}/api/{path}", headers={"Authorization": f"Basic {self.credentials}"})  # noqa: S310 - http and https, see named
        try:
            with _opener(self.ca_file).open(request, timeout=TIMEOUT) as answer:
                return json.loads(answer.read(MAX_ANSWER))
        except HTTPError as error:
            if error.code == 404:
                return None
            hint = f"; the password {self.doubt}" if error.code == 401 and self.doubt else ""
            raise Unavailable(f"{self.base}: {error.code} {error.reason}{_HINTS.get(error.code, '')}{hint}") from None
        except (URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            advice = cure(reason)
            raise Unavailable(f"{self.base}: {reason}{f'; {advice}' if advice else ''}") from None


def named(url: str, password_file: Path, vhost: str, ca_file: str) -> Management:
    """Give the interface at ``http[s]://account@host:port`` with the password of a file.

    Raises:
        Stopped: the URL or the file cannot be used.
    """
    if (base := _base(url)) is None:
        raise Stopped(Outcome.USAGE, "--management: http[s]://ACCOUNT@HOST:15672 is expected, without a password")
    try:
        password = one_line(read_secret(password_file))
    except OSError as error:
        raise Stopped(Outcome.USAGE, f"--management-password-file: {password_file} cannot be read: {error}") from None
    except NotOneLineError as error:
        raise Stopped(Outcome.USAGE, f"--management-password-file: {password_file} {error}") from None
    credentials = base64.b64encode(f"{base[1]}:{password}".encode()).decode("ascii")
    return Management(base[0], vhost, credentials, ca_file, doubt(password))


def _base(url: str) -> tuple[str, str] | None:
    """Give where the interface is and the account, None where the URL is not of the form."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 15672, "https": 15671}[parts.scheme]
    except (ValueError, KeyError):
        return None
    if not parts.hostname or not parts.username or parts.password is not None:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}", unquote(parts.username)


def _opener(ca_file: str) -> OpenerDirector:
    """Give what speaks http and https: it follows no redirect and asks no proxy, which would be given the password."""
    opener = OpenerDirector()
    https = HTTPSHandler(context=ssl.create_default_context(cafile=ca_file or None))
    for handler in (HTTPHandler(), https, HTTPDefaultErrorHandler(), HTTPErrorProcessor()):
        opener.add_handler(handler)
    return opener


def _objects(answer: object) -> list[Object]:
    return [entry for entry in answer if isinstance(entry, dict)] if isinstance(answer, list) else []


_HINTS: Final = {401: " (account or password)", 403: " (the account needs the tag monitoring)"}
