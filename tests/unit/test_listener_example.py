"""The shipped listener.toml: complete, and exactly the defaults of the code."""

import tomllib
from dataclasses import fields
from pathlib import Path

from broker_listener.config import ListenerConfig, load

EXAMPLE = Path(__file__).parents[2] / "etc" / "listener.toml"


def test_the_shipped_example_is_the_defaults() -> None:
    assert load(EXAMPLE) == ListenerConfig()


def test_the_shipped_example_sets_every_key() -> None:
    table = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    sections = {section.name: getattr(ListenerConfig(), section.name) for section in fields(ListenerConfig)}
    expected = {name: {key.name for key in fields(section)} for name, section in sections.items()}
    assert {name: set(section) for name, section in table.items()} == expected
