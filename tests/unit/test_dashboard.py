"""The dashboard and the alert rules ask for metrics that the listener exports, by labels that it gives.

What Prometheus itself makes of them is held by tests/integration/test_alert_rules.py.
"""

import asyncio
import json
import re
from functools import cache
from typing import Any

import click
import pytest

from broker_listener.config import ListenerConfig
from broker_listener.metrics import _Listener
from broker_listener.operator.__main__ import group
from broker_listener.service import Service
from tests.lab.prometheus import ETC, RULES, expressions, metrics_of

pytestmark = pytest.mark.library

OF_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus itself gives each target."""


@cache
def exported() -> dict[str, set[str]]:
    """Give the labels of every series, by its name."""

    async def collect() -> dict[str, set[str]]:
        service = Service(ListenerConfig())
        service.on_listed({}, draining=False, free=7, asked=0)
        found: dict[str, set[str]] = {}
        for family in _Listener(service._look).collect():
            labels = set(family._labelnames)  # type: ignore[attr-defined]  # of the families that are made here
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
            found |= {
                f"{family.name}{suffix}": labels | {"le"} if suffix == "_bucket" else labels for suffix in suffixes
            }
        await service._stop()
        return found

    return asyncio.run(collect())


EXPRESSIONS = sorted(set(expressions()))


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_every_expression_asks_for_what_is_exported(where: str, expression: str) -> None:
    names = metrics_of(expression)
    assert names or expression.startswith("up{"), where
    assert {name for name in names if name not in exported()} == set()


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_every_label_is_one_of_a_metric_beside_it(where: str, expression: str) -> None:
    asked = set(re.findall(r"(\w+)\s*=~?\s*\"", expression))
    for by in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        asked |= {label.strip() for label in by.split(",")}
    known = OF_PROMETHEUS.union(*(exported()[name] for name in metrics_of(expression)))
    assert asked <= known, where


def test_every_metric_is_shown_somewhere() -> None:
    """One that nobody looks at is either missing on the page or not worth its place in the code."""
    shown = {name for _, expression in EXPRESSIONS for name in metrics_of(expression)}
    assert {name for name in exported() if name not in shown} <= {
        "knime_peruser_hand_over_seconds_sum",
        "knime_peruser_hand_over_seconds_count",
    }


def test_panels_have_a_text_and_a_place_of_their_own() -> None:
    panels: list[dict[str, Any]] = json.loads((ETC / "grafana-dashboard.json").read_text("utf-8"))["panels"]
    assert all(panel["title"] and panel["description"] for panel in panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in panels})


def test_every_alert_names_a_severity_a_sentence_and_a_command() -> None:
    rules = (ETC / "prometheus-alerts.yml").read_text("utf-8").split("- alert: ")[1:]
    assert len(rules) >= 10
    for rule in rules:
        assert all(key in rule for key in ("severity:", "summary:", "command:")), rule


def test_every_command_that_an_alert_names_is_one_with_its_options() -> None:
    commands = re.findall(r'command: "(.*)"', RULES.read_text("utf-8"))
    ours = [re.split(r"[;|]", rest)[0].split() for text in commands for rest in text.split("knime-peruser ")[1:]]
    assert len(ours) >= 5
    context = click.Context(group)
    for words in ours:
        found: click.Command = group
        for word in words:
            if isinstance(found, click.Group):
                found = found.get_command(context, word) or found
                assert found.name == word, words
            elif word.startswith("--"):
                assert word in {option for parameter in found.params for option in parameter.opts}, words
