"""README.md against the code: the diagram, keys and defaults, reasons and events, programs that it shows, files.

What is generated is written anew by ``python tests/unit/test_readme.py`` in the checkout.
"""

import json
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from broker_listener.actions import Fault  # noqa: E402
from broker_listener.config import ListenerConfig  # noqa: E402
from broker_listener.jobs import NoJobReason  # noqa: E402
from broker_listener.operator.__main__ import SUBCOMMANDS  # noqa: E402
from broker_listener.transitions import TRANSITIONS, Event, State  # noqa: E402
from protocol.messages import FailedReason, RefusedReason  # noqa: E402
from root_helper.config import HelperConfig  # noqa: E402

README = ROOT / "README.md"
DOCUMENTS = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "protocol/PROTOCOL.md", "docs/json.md"]
BEGIN, END = "<!-- generated: per-user machine -->\n", "<!-- end -->\n"


def readme() -> str:
    return README.read_text(encoding="utf-8")


def diagram() -> str:
    """Draw the changes of state; what leads to one state from everywhere is said below, or nobody could read it."""
    everywhere, edges = [], defaultdict(list)
    for event in Event:
        steps = {state: TRANSITIONS[state, event].state for state in State}
        if len(set(steps.values())) == 1:
            everywhere.append(f"{_words(event)}: {steps[State.ABSENT].name}")
            continue
        for state, then in steps.items():
            if then is not state:
                edges[state, then].append(_words(event))
    lines = [f"    {state.name} --> {then.name}: {', '.join(events)}" for (state, then), events in edges.items()]
    drawn = ["```mermaid", "stateDiagram-v2", "    [*] --> ABSENT", *lines, "```"]
    return "\n".join([*drawn, "", f"From every state: {'; '.join(everywhere)}.", ""])


def _words(event: Event) -> str:
    return event.name.lower().replace("_", " ")


def generated(text: str) -> str:
    """Give the text with its generated part as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{diagram()}{END}{after}"


def test_the_diagram_is_drawn_from_the_transition_table() -> None:
    assert readme() == generated(readme()), "python tests/unit/test_readme.py writes it anew"


def test_every_state_is_explained() -> None:
    assert first_cells("The states of a user") == [state.name for state in State]


def section(heading: str) -> str:
    """Give what stands below a heading, up to the next one of any level."""
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", readme(), re.MULTILINE | re.DOTALL)
    assert match, heading
    return match[1]


def first_cells(heading: str) -> list[str]:
    """Give the first cell of each row of the section's tables, without backticks and without their headings."""
    rows = [line for line in section(heading).splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    cells = [row.split(" | ")[0].removeprefix("| ").strip("`") for row in rows]
    return [cell for cell in cells if cell not in ("key", "reason", "state", "event=")]


def keys(value: Any, table: str = "") -> Iterator[tuple[str, Any]]:
    for entry in fields(value):
        inner = getattr(value, entry.name)
        if is_dataclass(inner):
            yield from keys(inner, f"{table}{entry.name}.")
        else:
            yield f"{table}{entry.name}", inner


@pytest.mark.parametrize(("file", "config"), [("helper.toml", HelperConfig()), ("listener.toml", ListenerConfig())])
def test_the_tables_of_keys_name_keys_that_exist_with_their_defaults(file: str, config: object) -> None:
    known = dict(keys(config))
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \|", section(file), re.MULTILINE)
    assert rows
    for key, default in rows:
        assert key in known
        if default.startswith("`"):
            shown = tomllib.loads(f"default = {default.strip('`')}")["default"]
            assert shown == (list(known[key]) if isinstance(known[key], tuple) else known[key]), key


def test_every_key_that_the_text_names_exists() -> None:
    known = dict(keys(HelperConfig())) | dict(keys(ListenerConfig()))
    tables = "|".join(sorted({key.partition(".")[0] for key in known}))
    for key in re.findall(rf"`((?:{tables})\.[a-z_.]+)`", readme()):
        a_file = key == "executor.log"
        assert a_file or key in known or any(name.startswith(f"{key}.") for name in known), key


def test_every_reason_has_a_row() -> None:
    parked = {reason.value for reason in NoJobReason} | {"bad_properties", "start_failed"}
    assert parked - {"invalid_name"} == set(first_cells("Parked messages")) - {"a reason of the next table"}
    assert first_cells("Refused: the user may have no executor") == [reason.value for reason in RefusedReason]
    assert first_cells("Failed: not now, the jobs are held") == [reason.value for reason in FailedReason]


def test_every_fault_that_the_listener_reports_has_a_row() -> None:
    assert {fault.value for fault in Fault} - {"parked"} <= set(re.findall(r"`(\w+)`", section(_LINES)))


def test_every_event_of_the_listeners_table_is_one_that_it_logs() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "broker_listener").rglob("*.py"))
    for row in section(_LINES).splitlines():
        for event in re.findall(r"`(\w+)`", row.partition(" | ")[0]):
            assert f"event={event}" in source or event in {fault.value for fault in Fault}, event


def test_every_command_that_is_shown_is_one() -> None:
    shown = set(re.findall(r"(?:`|^)knime-peruser ([a-z][a-z-]+)", readme(), re.MULTILINE))
    assert shown - {"quickstart"} == set(SUBCOMMANDS)


def test_the_record_that_is_shown_has_the_keys_of_one() -> None:
    shown = re.search(r"```json\n(.*?)```", section("The audit log"), re.DOTALL)
    golden = (ROOT / "tests/unit/audit_record.golden.jsonl").read_text(encoding="ascii").splitlines()[0]
    assert shown
    assert json.loads(shown[1]).keys() == json.loads(golden).keys()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_and_every_file_of_the_checkout_that_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)#:]+)\)", text))
    named |= set(re.findall(r"`((?:tests|root_helper|broker_listener|etc|systemd|\.ci)/[\w./-]*)`", text))
    for name in named:
        assert (ROOT / name).exists() or ((ROOT / document).parent / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_words_of_a_document_stand_there_twice_in_a_row(document: str) -> None:
    """A slip of the editor's, such as "Names that a caller Names that a caller sent"."""
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = " ".join(line for line in text.splitlines() if not line.startswith("|"))
    twice = [
        found[0] for found in re.finditer(r"\b([a-z]+|(?:[A-Za-z]+ ){2,5}[A-Za-z]+) \1\b", " ".join(prose.split()))
    ]
    assert twice == []


_LINES = "Lines of the listener's log"


if __name__ == "__main__":
    README.write_text(generated(readme()), encoding="utf-8")
