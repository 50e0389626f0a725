"""The command ``knime-broker-listener``: reads its arguments and configuration, and serves until it is told to end.

It refuses to run as root: everything that it reads from the network would be root's then.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

from broker_listener import standard_streams
from broker_listener.config import ListenerConfig, NoPassword, load, read_password
from broker_listener.notify import Notify
from protocol.settings import SettingsError

HOST_FAULT: Final = 1
CONFIGURATION_FAULT: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    return standard_streams.run(lambda: _run(arguments), "knime-broker-listener")


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    try:
        config = load(given.config)
        read_password(config.broker)
    except SettingsError as error:
        return _fault(*error.faults)
    except NoPassword as error:
        return _fault(str(error))
    if given.check:
        return 0
    if os.geteuid() == 0:
        return _fault(
            "knime-broker-listener: runs as root, which it must not: it parses what the network sends; start it as"
            " the unit knime-broker-listener.service does, as user knime-listener"
        )
    return _serve(config)


def _serve(config: ListenerConfig) -> int:
    # Not before: --check needs neither pika nor zmq.
    from broker_listener.pika_seam import missing  # noqa: PLC0415

    if lacks := missing():
        return _fault(
            f"knime-broker-listener: this pika is none of 1.2 to 1.4: {', '.join(lacks)}; install one of these, or a"
            " newer knime-peruser",
            status=HOST_FAULT,
        )
    from broker_listener.service import run  # noqa: PLC0415
    from broker_listener.stderr_log import StderrLog  # noqa: PLC0415

    log = StderrLog()
    logging.basicConfig(level=logging.INFO, handlers=[log])
    try:
        asyncio.run(run(config))
    finally:
        log.close()
    return 0


def _fault(*faults: str, status: int = CONFIGURATION_FAULT) -> int:
    try:
        for fault in faults:
            sys.stderr.write(fault.encode("ascii", "backslashreplace").decode() + "\n")
    except standard_streams.OutputLost:  # the exit status says it, too, and so does systemd's status line
        standard_streams.silence()
    notify = Notify()
    notify.failed("; ".join(faults))
    notify.close()
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="knime-broker-listener",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        required=True,
        help="the configuration, normally /etc/knime-peruser/listener.toml; every key has a default",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the configuration and the broker's password, connect to nothing, change nothing, and exit",
    )
    return parser


_DESCRIPTION: Final = """\
Consumes the jobs that KNIME Server queues for its executors, sees to it that
each job's user has an executor (it asks knime-root-helper, which decides and
starts), and hands the job over once that executor is connected to the broker.

It runs in the foreground as an unprivileged user, logs to stderr, tells systemd
when it is ready, and ends on SIGTERM or SIGINT: what it holds goes back to the
queue. Running executors are never disturbed by its start, end or crash."""

_EPILOG: Final = """\
exit status:
  0  ended when told to; or, with --check, nothing is wrong
  1  the installed pika lacks what the listener relies on
  2  the configuration cannot be used: one line a fault on stderr, naming file,
     key and what is expected; or it was started as root

files:
  /etc/knime-peruser/listener.toml
  /run/knime-peruser/helper.sock        the root helper's socket (helper.socket)
  $CREDENTIALS_DIRECTORY/broker-password
                                        the broker's password, one line; the unit
                                        loads it from /etc/knime-peruser, where
                                        --check looks when it is run as root

A broker, queue, exchange or helper that is not there is waited for, not an error;
the log and the unit's status line say what is missing."""


if __name__ == "__main__":
    sys.exit(main())
