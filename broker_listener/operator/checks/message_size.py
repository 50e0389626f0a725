"""The question how large a message the broker takes: only rabbitmqctl tells, AMQP and the management API do not."""

import re
from collections.abc import Iterator
from typing import Final

from broker_listener.config import parse_url
from broker_listener.operator.checks.finding import Finding, Inputs, Question, not_asked, ok, warning

LARGEST: Final = 16777216
"""What RabbitMQ 4 takes by default; earlier ones take 128 MiB, and so does each consumer of the queue in turn."""
_ASK: Final = ("rabbitmqctl", "--quiet", "eval", "application:get_env(rabbit, max_message_size).")
_SUBJECT: Final = "broker.message_size"


def message_size(inputs: Inputs) -> Iterator[Finding]:
    """Ask the broker of this host for its max_message_size; another host's cannot be asked."""
    hosts = [parse_url(url).host for url in inputs.configuration.listener.broker.urls]
    if not any(host in {"localhost", "::1"} or host.startswith("127.") for host in hosts):
        yield not_asked(_SUBJECT, f"max_message_size of {', '.join(hosts)}", f"on that host: {_command()}; {_ADVICE}")
        return
    ran = inputs.run(_ASK)
    found = re.search(r"\{ok,\s*(\d+)\}", ran.output) if ran.status == 0 else None
    if found is None:
        yield not_asked(_SUBJECT, "rabbitmqctl does not tell max_message_size", f"{_command()}; {_ADVICE}")
    elif int(found[1]) > LARGEST:
        seen = f"the broker takes messages of up to {found[1]} bytes: a few of them are a load for all its consumers"
        yield warning(_SUBJECT, seen, _ADVICE)
    else:
        yield ok(_SUBJECT, f"the broker takes messages of up to {found[1]} bytes")


def _command() -> str:
    return f"{' '.join(_ASK[:-1])} '{_ASK[-1]}'"


_ADVICE: Final = "max_message_size = 16777216 in rabbitmq.conf, and restart the broker"
QUESTIONS: Final[tuple[Question, ...]] = (message_size,)
