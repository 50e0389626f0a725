"""The question whether executors start on this host, by what its listener has seen of those that did not."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from broker_listener.operator.checks.finding import Finding, Inputs, Question, fault, not_asked, ok, warning
from broker_listener.operator.listener_socket import HostFaultSeen, ListenerUser, Snapshot

SUBJECT: Final = "starts.host"
OWN: Final = "starts.users"
MAX_NAMES: Final = 5
_ADVICE: Final = "journalctl -u knime-root-helper: path and error; the jobs are held and run once it is mended"
_DEATHS: Final = "journalctl -t knime-executor-NAME: what the program said; the jobs are held and run once it is mended"
_DIED: Final = "died_before_ready"


def host(inputs: Inputs) -> Iterator[Finding]:
    """Ask whether executors start, whosever they are; and whose do not by a fault of the user's own."""
    listener = inputs.listener
    if not isinstance(listener, Snapshot):
        yield not_asked(SUBJECT, listener, "start the listener, or run this as root")
        return
    for seen in listener.host_faults:
        yield fault(SUBJECT, _told(seen), _DEATHS if seen.reason == _DIED else _ADVICE)
    if not listener.host_faults:
        yield ok(SUBJECT, "the listener knows of no fault by which nobody's executor starts")
    own = [user for user in listener.users if user.blame == "user"]
    if own:
        advice = "journalctl -u knime-root-helper, knime-peruser check --user NAME: a quota, a home, a limit of theirs"
        yield warning(OWN, f"cannot be started, while others can: {_named(own)}", advice)


def _told(seen: HostFaultSeen) -> str:
    since = datetime.fromtimestamp(seen.since, UTC).isoformat(sep=" ", timespec="seconds")
    return f"no executor starts: {seen.reason} of {seen.users} users since {since}, and none that worked"


def _named(users: list[ListenerUser]) -> str:
    more = f" and {len(users) - MAX_NAMES} more" if len(users) > MAX_NAMES else ""
    return ", ".join(f"{user.user} ({user.reason})" for user in users[:MAX_NAMES]) + more


QUESTIONS: Final[tuple[Question, ...]] = (host,)
