"""The dashboard and the alert rules ask for metrics that the listener exports, by labels that it gives."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from broker_listener.config import ListenerConfig
from broker_listener.metrics import _Listener
from broker_listener.service import Service

ETC = Path(__file__).parents[2] / "etc"
OF_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus itself gives each target."""


@cache
def exported() -> dict[str, set[str]]:
    """Give the labels of every series, by its name."""

    async def collect() -> dict[str, set[str]]:
        service = Service(ListenerConfig())
        service.on_listed({}, draining=False, free=7)
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


def expressions() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((ETC / "grafana-dashboard.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                yield panel["title"], f'{metrics_of(target["expr"])[0]}{{{label}=""}}'
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    rules = (ETC / "prometheus-alerts.yml").read_text("utf-8")
    for rule in re.split(r"\n\s+- alert: ", rules)[1:]:
        expression = re.search(r"expr:(?: >-)?(.*?)\n\s+(?:for|labels):", rule, re.DOTALL)
        assert expression, rule
        yield rule.split("\n")[0], " ".join(expression[1].split())


def metrics_of(expression: str) -> list[str]:
    return re.findall(r"\bknime_peruser_\w+", expression)


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


def test_promtool_takes_the_rules_and_the_panels_where_it_is_installed(tmp_path: Path) -> None:
    """The rest of this file holds without it; apt-get install prometheus brings it."""
    panels = tmp_path / "panels.yml"
    asked = [text.replace("$__rate_interval", "5m") for _, text in EXPRESSIONS if not text.startswith("label_values")]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(asked)]
    panels.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    promtool = shutil.which("promtool")
    for file in (ETC / "prometheus-alerts.yml", panels) if promtool else ():
        run = subprocess.run([str(promtool), "check", "rules", file], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
