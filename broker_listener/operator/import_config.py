"""``knime-peruser import-config``: takes the predecessor's configuration over, and says what it cannot take over.

It reads one JSON file and looks at the old directories. It writes four files into one directory, each completely or
not at all, and nothing else: what the host needs besides is printed as commands.
"""

import os
import tomllib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click

from broker_listener.config import ListenerConfig
from broker_listener.operator.configuration import HelperKeys
from broker_listener.operator.outcome import Outcome, Stopped
from broker_listener.operator.output import escaped, filled, manual, print_json, print_line
from broker_listener.operator.predecessor import counterpart, workspaces
from broker_listener.operator.predecessor.configuration import read
from broker_listener.operator.predecessor.counterpart import File, Note
from broker_listener.operator.predecessor.names import decide
from protocol.settings import SettingsError, settings

BEFORE = ".before-import"


@click.command(
    "import-config",
    help=manual(
        """\
        Take over the configuration of the predecessor, the per-user executor starter for KNIME.

        OLD is its JSON file, knime_executor_per_user_starter.config. listener.toml, helper.toml and the credentials
        broker-password and executor-msgq are written with the right owners and modes. What has no counterpart is said,
        with the reason, and what the host and the old workspaces need is printed as commands; none of them is run.

        Workspaces are kept. The predecessor lower-cased names: where KNIME calls somebody Bob, name KNIME's users in a
        file, one a line, with --user-names, and Bob keeps the workspace bob.

        examples:
          knime-peruser import-config --dry-run /opt/knime/knime_executor_per_user_starter.config
          knime-peruser import-config --user-names users.txt --force OLD.config

        exit status:
          0  done
          1  done, but a part of the mapping could not be taken over
          2  wrong usage, OLD cannot be used, or a file is there already and --force was not given
          4  not permitted: the files are root's
        """
    ),
)
@click.argument("old_file", metavar="OLD", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Default: --config-dir."
)
@click.option(
    "--user-names",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="KNIME's user names, one a line, spelled as KNIME has them.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be written, without passwords, and write nothing.")
@click.option("--force", is_flag=True, help=f"Replace files that are there; each is kept as NAME{BEFORE}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(  # noqa: PLR0913 - click gives each option as an argument
    directory: Path,
    *,
    old_file: Path,
    output: Path | None,
    user_names: Path | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> Outcome:
    """Read, write, print."""
    output = output or directory
    old, unknown = read(old_file)
    listed = user_names.read_text("utf-8-sig", "replace").splitlines() if user_names else []
    names = decide(
        old.local_knime_user_os_user_mapping, [name.strip() for name in listed], set(workspaces.names_of(old))
    )
    files = counterpart.files(old, names)
    _must_be_usable(files)
    notes = list(counterpart.notes(old, unknown, names))
    commands = list(workspaces.commands(old, old_file))
    if not dry_run:
        write(files, output, force=force)
    if as_json:
        shown = [asdict(file) | {"text": None if file.secret else file.text} for file in files]
        print_json({"files": shown, "notes": [asdict(note) for note in notes], "commands": commands})
    else:
        _print(files if dry_run else (), notes, commands, output)
    return Outcome.FINDING if names.incomplete else Outcome.DONE


def write(files: tuple[File, ...], directory: Path, *, force: bool) -> None:
    """Write the files, each as root's; where one is there already nothing is written without ``force``.

    Raises:
        Stopped: this is not root, a file is there, or the directory cannot be written.
    """
    if os.geteuid() != 0:
        raise Stopped(Outcome.NOT_PERMITTED, "the files are root's: run this as root, or look with --dry-run")
    there = [str(directory / file.name) for file in files if os.path.lexists(directory / file.name)]
    if there and not force:
        raise Stopped(Outcome.USAGE, f"{', '.join(there)}: already there; --force replaces and keeps {BEFORE} of each")
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        for file in files:
            _write(file, directory)
    except OSError as error:
        raise Stopped(
            Outcome.NOT_PERMITTED, f"{error.filename}: {error.strerror}; not all files were written"
        ) from None


def _write(file: File, directory: Path) -> None:
    """Write beside, then rename: nobody ever reads half a file, or a credential with a mode that is not its own."""
    new, final = directory / f".{file.name}.new", directory / file.name
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(file.text)
        os.fchown(descriptor, 0, 0)
        os.fchmod(descriptor, file.mode)
        opened.flush()
        os.fsync(descriptor)
    with suppress(FileNotFoundError):
        final.rename(directory / f"{file.name}{BEFORE}")
    new.rename(final)


def _must_be_usable(files: tuple[File, ...]) -> None:
    """See that the daemons would take what is about to be written, as far as it can be told before it is."""
    texts = {file.name: file.text for file in files}
    try:
        settings(ListenerConfig, tomllib.loads(texts["listener.toml"]), "listener.toml")
        helper = tomllib.loads(texts["helper.toml"])
        known = {name: helper[name] for name in ("executor",) if name in helper}
        settings(HelperKeys, known, "helper.toml")
    except (ValueError, SettingsError) as error:
        raise Stopped(Outcome.USAGE, f"OLD gives a configuration that no daemon would take: {error}") from None


def _print(files: tuple[File, ...], notes: list[Note], commands: list[tuple[str, str]], output: Path) -> None:
    for file in files:
        print_line(f"{output / file.name} (root, {file.mode:04o})", "bold")
        for line in ("(a password, not shown)",) if file.secret else file.text.splitlines():
            print_line(f"  {escaped(line, 1000)}")
    print_line("What has no counterpart, and what is different:", "bold")
    for note in notes:
        print_line(filled("  ", f"{escaped(note.subject)}: {escaped(note.text, 500)}"))
    print_line("What the host needs, as root; look at each line before you run it:", "bold")
    for line, why in commands:
        if line.startswith("#"):
            print_line(f"  {escaped(line, 1000)}: {escaped(why)}")
        else:
            print_line(f"  # {escaped(why)}\n  {escaped(line, 1000)}")
    print_line(f"Then: knime-peruser --config-dir {output} check, and systemctl enable --now both units.", "bold")
