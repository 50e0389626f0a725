"""What ``--json`` prints, of every command that has it, beside docs/json.md: the same keys, and a version."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_listener.operator.__main__ import group
from tests.lab.accounts import OsUser
from tests.lab.managed_broker import MONITOR, ManagedBroker
from tests.lab.operators_command import Said, ended, run, started
from tests.lab.processes import wait_for
from tests.lab.site import Site

PAGE = Path(__file__).parents[2] / "docs/json.md"
OLD = {
    "rabbitmq_host_name": "127.0.0.1", "rabbitmq_client_user": "u", "rabbitmq_client_password": "p",
    "knime_home": "/opt/knime", "knime_workspace_parent_folder": "/srv/old",
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(managed_broker: ManagedBroker) -> Iterator[tuple[Site, OsUser]]:
    """Give a site that runs, with a user who has an executor and a message that is parked."""
    made = Site(managed_broker)
    try:
        made.create()
        (made.installation.etc / "monitor-password").write_text(MONITOR)
        account = made.broker.server
        (made.installation.etc / "server-password").write_text(account.password)
        shutil.copyfile(
            made.installation.credentials("listener") / "broker-password", made.installation.etc / "broker-password"
        )
        made.start()
        made.server.publish_raw(b"no job")
        user = made.accounts.user("alice")
        made.server.publish(user.name)
        made.server.results(1)
        wait_for(lambda: made.server.depth("knime-jobs.parked") == 1, 20, "the parked message")
        yield made, user
    finally:
        made.remove()


@pytest.fixture
def site(begun: tuple[Site, OsUser]) -> Site:
    return begun[0]


@pytest.fixture
def alice(begun: tuple[Site, OsUser]) -> OsUser:
    return begun[1]


def sections() -> dict[str, set[str]]:
    """Give the keys of the page's tables by command; ``a, b`` in a heading are two with the same keys."""
    found: dict[str, set[str]] = {}
    for heading, text in re.findall(
        r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
        keys = {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}
        found |= dict.fromkeys(heading.split(", "), keys)
    return found


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Give the path of each value of a document, ``[]`` for any element of a list of objects."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from paths(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from paths(inner, f"{path}[]")
    else:
        yield path


def agree(command: str, *documents: dict[str, Any]) -> None:
    """See that the documents begin with the version, and have the keys of the page, all of them together."""
    rows = sections()[command]
    printed: set[str] = set()
    for document in documents:
        assert next(iter(document.items())) == ("v", 1)
        printed |= set(paths({key: value for key, value in document.items() if key != "v"}))
    names_none = {path for path in printed if not any(_names(row, path) for row in rows)}
    assert names_none == set(), "the page does not name these"
    never = {row for row in rows if not any(_is_within(path, row.removesuffix(".*")) for path in printed)}
    assert never == set(), "nothing prints these"


def _names(row: str, path: str) -> bool:
    return path == row or (row.endswith(".*") and _is_within(path, row[:-2]))


def _is_within(path: str, key: str) -> bool:
    return path == key or path.startswith((f"{key}.", f"{key}[]"))


def lines(said: Said) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.out.splitlines()]


def with_socket(site: Site, *words: str) -> list[str]:
    return ["status", *words, "--json", "--status-socket", str(site.installation.status_socket)]


def test_the_page_has_a_section_for_every_command_with_json() -> None:
    """A command that learns --json without a form on the page fails here."""
    named = set()
    for name in group.list_commands(None):  # type: ignore[arg-type] # it asks nothing of the context
        found = group.get_command(None, name)  # type: ignore[arg-type] # nor does this
        inner = getattr(found, "commands", None)
        for words, command in (
            {f"{name} {sub}": one for sub, one in inner.items()}.items() if inner else [(name, found)]
        ):
            if any("--json" in option.opts for option in command.params):
                named.add(words)
    assert named == set(sections()) - {"status USER"}


def test_check_prints_the_form_of_the_page(site: Site) -> None:
    agree("check", run(site.installation, "check", "--json").json)


def test_status_prints_the_form_of_the_page(site: Site, alice: OsUser) -> None:
    nowhere = run(site.installation, "status", "--json", "--status-socket", "/nonexistent/status.sock")
    agree("status", run(site.installation, *with_socket(site)).json, nowhere.json)
    agree("status USER", run(site.installation, *with_socket(site, alice.name)).json)


def test_drain_and_undrain_print_the_form_of_the_page(site: Site) -> None:
    for verb in ("drain", "undrain"):
        agree(verb, run(site.installation, verb, "--json").json)


def test_stop_prints_the_form_of_the_page(site: Site) -> None:
    agree("stop", run(site.installation, "stop", "nobody-has-one", "--json").json)


def test_parked_prints_the_forms_of_the_page(site: Site) -> None:
    """Listing and showing print a line for each message, so that jq reads them one by one."""
    agree("parked list", *lines(run(site.installation, "parked", "list", "--json")))
    agree("parked show", *lines(run(site.installation, "parked", "show", "--body", "--json")))
    for verb in ("retry", "drop"):
        said = run(site.installation, "parked", verb, "--all", "--dry-run", "--json")
        agree(f"parked {verb}", said.json)
        assert said.json["done"] == 1


def test_audit_prints_the_forms_of_the_page(site: Site, tmp_path: Path) -> None:
    """A record is printed with its hash, and a fault with its place."""
    agree("audit show", *lines(run(site.installation, "audit", "show", "--json", "--lines", "0")))
    whole = Path(site.installation.audit_log).read_bytes().splitlines(keepends=True)
    torn = tmp_path / "audit.jsonl"
    torn.write_bytes(b"".join([*whole[:1], *whole[2:]]))
    said = run(site.installation, "audit", "verify", "--json", "--log", str(torn))
    assert said.status == 1
    agree("audit verify", said.json)


def test_observe_prints_the_form_of_the_page(site: Site) -> None:
    assert isinstance(site.broker, ManagedBroker)
    etc = site.installation.etc
    words = ["--management", site.broker.url, "--management-password-file", f"{etc}/monitor-password"]
    words += ["--account", site.broker.server.name, "--password-file", f"{etc}/server-password"]
    watching = started(site.installation, "observe", "--for", "10", "--json", *words)
    try:
        wait_for(lambda: _bindings(site) == 2, 60, "the private queue")
        for _ in range(2):  # as if it had come back
            site.server.publish_raw(b'{"user": "nobody-knows-me"}')
    finally:
        said = ended(watching)
    agree("observe", said.json)


def _bindings(site: Site) -> int:
    listed = site.broker.ctl("list_bindings", "-p", site.vhost, "source_name", "--formatter", "json")
    return sum(one["source_name"] == site.server.exchange for one in json.loads(listed))


def test_import_config_prints_the_form_of_the_page(site: Site, tmp_path: Path) -> None:
    old = tmp_path / "old.config"
    old.write_text(json.dumps(OLD))
    agree("import-config", run(site.installation, "import-config", "--dry-run", "--json", str(old)).json)
