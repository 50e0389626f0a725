"""``knime-peruser drain`` and ``undrain``: start no executor any more on this host, and start them again.

The helper keeps the mark, over restarts and reboots. Nothing is ended here: ``--wait`` waits until users' executors
have ended by themselves, or by ``knime-peruser stop``.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from broker_listener.operator import configuration
from broker_listener.operator.ends import Ends
from broker_listener.operator.helper_socket import HelperSocket, Listing, connected
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.output import escaped, manual, print_json, print_line, progress, say
from broker_listener.operator.processes import executors_slice_is_populated, workers_of

LOOK: Final = 0.5
"""Seconds between two looks at what is still on its way."""
LIST: Final = 10.0
"""Seconds between two questions to the helper while executors run: it records each of them."""


@click.command(
    "drain",
    help=manual(
        """\
        Start no executor any more on this host, for maintenance. Those that run go on and get their jobs; jobs of other
        users are held, for at most broker.max_hold, and are then in the queue. This lasts over restarts and a reboot,
        until knime-peruser undrain.

        With --wait it ends when the last executor has ended. Nobody is told to end: KNIME ends executors that are not
        used, knime-peruser stop ends one, and systemctl stop knime-executors.slice all of them.

        examples:
          knime-peruser drain --wait && apt full-upgrade && reboot
          knime-peruser drain --wait --timeout 3600 || systemctl stop knime-executors.slice

        exit status:
          0  draining; with --wait: and no executor runs
          1  executors still run after --timeout, or the helper could not begin
          2  wrong usage, or the configuration cannot be used
          3  the root helper cannot be reached
          4  not permitted: run it as root
          130  interrupted; it goes on draining
        """
    ),
)
@click.option("--wait", is_flag=True, help="Wait until no executor runs.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="With --wait: at most so long.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def drain(
    config_dir: Path,
    wait: bool,  # noqa: FBT001 - click's flags
    timeout: float | None,
    as_json: bool,  # noqa: FBT001
) -> Outcome:
    """Begin to drain, and wait."""
    with _asked(config_dir) as asked:
        _set(asked, on=True)
        listing = asked.executors()
        if not as_json:
            print_line(f"draining: no executor is started any more; {_running(listing)}")
        is_over = True
        if wait:
            with _interruptible():
                listing, is_over = _wait(asked, timeout)
            if not as_json:
                print_line(_running(listing))
            if not is_over and not listing.executors:
                say("a start is still on its way, or something is left of an executor")
    if as_json:
        print_json({"draining": True, "executors": [entry.user for entry in listing.executors]})
    return Outcome.DONE if is_over else Outcome.FINDING


@click.command(
    "undrain",
    help=manual(
        """\
        Start executors again on this host, after knime-peruser drain. Held jobs get theirs within a few seconds.

        exit status:
          0  done
          1  the helper could not end it: see its log
          2  the configuration cannot be used
          3  the root helper cannot be reached
          4  not permitted: run it as root
        """
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def undrain(config_dir: Path, as_json: bool) -> Outcome:  # noqa: FBT001 - click's flag
    """End draining."""
    with _asked(config_dir) as asked:
        _set(asked, on=False)
        listing = asked.executors()
    if as_json:
        print_json({"draining": False, "executors": [entry.user for entry in listing.executors]})
    else:
        print_line(f"not draining: executors are started, {listing.free} more than run; {_running(listing)}")
    return Outcome.DONE


@contextmanager
def _asked(config_dir: Path) -> Iterator[HelperSocket]:
    with connected(configuration.load_helper(config_dir).socket.operator_path) as asked:
        yield asked


def _set(asked: HelperSocket, *, on: bool) -> None:
    if asked.set_draining(on=on) is not on:
        mark = "written" if on else "removed"
        why = f"the mark /var/lib/knime-peruser/draining could not be {mark}: journalctl -u knime-root-helper says why"
        raise Stopped(Outcome.FINDING, why)


def _wait(asked: HelperSocket, timeout: float | None) -> tuple[Listing, bool]:
    """Wait until nothing runs and nothing is on its way; give what still runs, and whether the wait is over."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with progress("") as tell:
        while True:
            on_its_way = _on_its_way(asked.pid)  # first: what is started between the two questions is in the list
            listing = asked.executors()
            tell(f"waiting until no executor runs; {_running(listing)}")
            left = LIST if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return listing, not listing.executors and not on_its_way
            with Ends(entry.pid for entry in listing.executors) as ends:
                if not ends.wait(min(left, LIST)):
                    continue
            if not listing.executors and not on_its_way:
                return listing, True
            time.sleep(min(left, LOOK))


def _on_its_way(helper: int) -> bool:
    """Say whether a start that began before draining did is not over, or something of an executor is still there."""
    return bool(workers_of(helper)) or executors_slice_is_populated()


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("no longer waiting; the host goes on draining until knime-peruser undrain")
        raise


def _running(listing: Listing) -> str:
    users = [escaped(entry.user) for entry in listing.executors]
    if not users:
        return "no executor runs"
    shown = ", ".join(users[:_SHOWN]) + (f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else "")
    return f"{len(users)} executor{'s run' if len(users) > 1 else ' runs'}: {shown}"


_SHOWN: Final = 5
