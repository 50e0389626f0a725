"""``knime-peruser stop``: end a user's executor, and wait until it has ended.

The helper ends it: SIGTERM, and after ``limits.stop_grace`` SIGKILL. Nobody is barred: the user's next job starts a
new one.
"""

import time
from pathlib import Path

import click

from broker_listener.operator import configuration
from broker_listener.operator.ends import Ends
from broker_listener.operator.helper_socket import connected
from broker_listener.operator.outcome import Outcome
from broker_listener.operator.output import escaped, manual, print_json, print_line, progress

PATIENCE = 30.0
"""Seconds after SIGKILL; a process that a dead NFS server holds does not end by it."""


@click.command(
    "stop",
    help=manual(
        """\
        End the executor of a KNIME user, and wait until it has ended: SIGTERM, and after limits.stop_grace SIGKILL.
        Workflows that run in it are lost. USER is the name as KNIME has it.

        Nobody is barred: the user's next job starts a new executor. To keep one from that, see users.deny_users.

        examples:
          knime-peruser stop alice
          knime-peruser stop alice --no-wait

        exit status:
          0  it has ended; with --no-wait: it was told to
          1  the user has none, or it has not ended in time
          2  wrong usage, or the configuration cannot be used
          3  the root helper cannot be reached
          4  not permitted: run it as root
        """
    ),
)
@click.argument("user")
@click.option("--wait/--no-wait", default=True, help="Wait until it has ended (the default).")
@click.option(
    "--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait at most so long; default: stop_grace and 30 s."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    config_dir: Path,
    user: str,
    wait: bool,  # noqa: FBT001 - click's flags
    timeout: float | None,
    as_json: bool,  # noqa: FBT001
) -> Outcome:
    """End an executor."""
    helper = configuration.load_helper(config_dir)
    grace = helper.limits.stop_grace
    with connected(helper.socket.operator_path) as asked:
        executor = asked.executors().of(user)
        pid = executor.pid if executor else None
        # Before it is told to end: the pid is surely still its own.
        with Ends([pid] if pid is not None else []) as ends:
            if not asked.stop(user):
                return _said(user, "absent", pid, as_json=as_json)
            if not wait:
                return _said(user, "stopping", pid, as_json=as_json)
            began = time.monotonic()
            with progress(f"waiting for {escaped(user)}'s executor, pid {pid}, to end; SIGKILL after {grace:g} s"):
                has_ended = ends.wait(grace + PATIENCE if timeout is None else timeout)
    seconds = time.monotonic() - began
    return _said(user, "stopped" if has_ended else "still_running", pid, seconds=seconds, as_json=as_json)


def _said(user: str, result: str, pid: int | None, *, as_json: bool, seconds: float | None = None) -> Outcome:
    if as_json:
        took = None if seconds is None else round(seconds, 1)
        print_json({"user": user, "result": result, "pid": pid, "seconds": took})
    else:
        print_line(_SAID[result].format(user=escaped(user), pid=pid, seconds=seconds))
    return Outcome.DONE if result in {"stopping", "stopped"} else Outcome.FINDING


_SAID = {
    "absent": "{user} has no executor on this host; knime-peruser status shows who has",
    "stopping": "{user}'s executor, pid {pid}, was told to end",
    "stopped": "{user}'s executor, pid {pid}, has ended, after {seconds:.1f} s",
    "still_running": "{user}'s executor, pid {pid}, still runs after {seconds:.1f} s: does it hang on a file server?",
}
