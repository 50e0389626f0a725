"""The command ``knime-peruser``: finds the subcommand, loads its file and nothing else, and gives its exit status.

Each file of a subcommand has a click command named ``command`` that returns an ``Outcome``. Its context's object is
the directory of the configuration, a ``Path``.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import click

from broker_listener import VERSION, standard_streams
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.output import manual, say

INTERRUPTED: Final = 130
"""128 and SIGINT, as shells have it."""


class Subcommand(NamedTuple):
    """Where a subcommand is, and what the overview says of it."""

    module: str
    attribute: str
    summary: str


SUBCOMMANDS: Final[Mapping[str, Subcommand]] = MappingProxyType(
    {
        "check": Subcommand("check", "command", "Look at the installation: what is wrong, and what to do."),
        "status": Subcommand("status", "command", "Who has an executor, and how the daemons are."),
        "stop": Subcommand("stop", "command", "End a user's executor."),
        "drain": Subcommand("drain", "drain", "Start no executor any more, for maintenance."),
        "undrain": Subcommand("drain", "undrain", "Start executors again."),
        "parked": Subcommand("parked", "command", "Look at what is no job or may not run; retry or drop it."),
        "audit": Subcommand("audit", "command", "Read the audit log, and verify it."),
        "observe": Subcommand("observe", "command", "Learn what this KNIME installation's messages look like."),
        "import-config": Subcommand("import_config", "command", "Take over the predecessor's configuration."),
    }
)


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are asked for: ``audit`` loads no pika."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names in the order of the overview."""
        del ctx
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and give a subcommand, None where there is none of that name."""
        del ctx
        if (subcommand := SUBCOMMANDS.get(cmd_name)) is None:
            return None
        module = import_module(f"broker_listener.operator.{subcommand.module}")
        found = getattr(module, subcommand.attribute)
        if not isinstance(found, click.Command):
            raise TypeError(f"{subcommand.module}.{subcommand.attribute} is no command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview without importing any of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, subcommand.summary) for name, subcommand in SUBCOMMANDS.items()])


@click.group(
    "knime-peruser",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=manual(
        """\
        See and steer the executors of this host: one for each user of KNIME.

        exit status:
          0    done
          1    a fault was found, what was asked for is absent, or it was done in part
          2    wrong usage, or the configuration cannot be used
          3    a daemon or the broker cannot be reached
          4    not permitted: most of it is for root
          130  interrupted
          141  what was printed was not read to its end; what the command does is done
        """
    ),
)
@click.option(
    "--config-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/etc/knime-peruser"),
    show_default=True,
    help="Where listener.toml, helper.toml and the credentials are.",
)
@click.version_option(VERSION, prog_name="knime-peruser")
@click.pass_context
def group(context: click.Context, config_dir: Path) -> None:
    """Note where the configuration is."""
    context.obj = config_dir


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    return standard_streams.run(lambda: _run(arguments), "knime-peruser")


def _run(arguments: Sequence[str] | None) -> int:
    try:
        outcome = group.main(arguments, "knime-peruser", standalone_mode=False)
    except click.Abort:
        say("interrupted")
        return INTERRUPTED
    except Stopped as stopped:
        say(str(stopped))
        return int(stopped.outcome)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return outcome if isinstance(outcome, int) else int(Outcome.DONE)


if __name__ == "__main__":
    sys.exit(main())
