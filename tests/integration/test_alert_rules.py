"""Prometheus's own promtool takes the rules and the panels' expressions, and each alert fires for what it is named."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from broker_listener.config import ListenerConfig
from broker_listener.metrics import Metrics
from broker_listener.service import Service
from tests.lab.prometheus import RULES, CannotBeHad, alerts, expressions, promtool

MINUTES = {"KnimePerUserStillDraining": 300}
"""Until the alert is looked for, where that is not an hour."""
WELL = {
    'up{job="knime-peruser"}': "1",
    "knime_peruser_start_time_seconds": "1000",
    "knime_peruser_jobs_received_total": "0+20",
    "knime_peruser_jobs_returned_total": "0+5",
    "knime_peruser_jobs_handed_over_total": "0+20",
    'knime_peruser_jobs_parked_total{reason="no_user"}': "3",
    "knime_peruser_jobs_held_too_long_total": "0",
    "knime_peruser_jobs_held": "2",
    "knime_peruser_jobs_not_parked": "0",
    'knime_peruser_hand_over_seconds_bucket{le="20"}': "0+5",
    'knime_peruser_hand_over_seconds_bucket{le="60"}': "0+5",
    'knime_peruser_hand_over_seconds_bucket{le="+Inf"}': "0+5",
    'knime_peruser_broker_up{connection="consume"}': "1",
    'knime_peruser_broker_up{connection="publish"}': "1",
    'knime_peruser_broker_reconnects_total{connection="consume"}': "4",
    "knime_peruser_broker_blocked": "0",
    "knime_peruser_consuming": "1",
    "knime_peruser_helper_up": "1",
    "knime_peruser_helper_reconnects_total": "2",
    'knime_peruser_helper_answers_total{answer="running"}': "0+9",
    'knime_peruser_helper_answers_total{answer="prepare_failed"}': "1",
    'knime_peruser_helper_answers_total{answer="at_capacity"}': "1",
    'knime_peruser_helper_answers_total{answer="audit_unavailable"}': "1",
    'knime_peruser_host_fault{reason="spawn_failed"}': "0",
    'knime_peruser_host_fault{reason="died_before_ready"}': "0",
    "knime_peruser_users_failing": "0",
    "knime_peruser_helper_draining": "0",
    "knime_peruser_helper_free": "50",
}
"""A host on which nothing is wrong: the first sample, and by how much each minute's is more."""
GOES_WRONG = {
    "KnimePerUserListenerDown": {'up{job="knime-peruser"}': "0"},
    "KnimePerUserBrokerDown": {'knime_peruser_broker_up{connection="publish"}': "0"},
    "KnimePerUserBrokerBlocked": {"knime_peruser_broker_blocked": "1"},
    "KnimePerUserHelperDown": {"knime_peruser_helper_up": "0"},
    "KnimePerUserNoAuditLog": {'knime_peruser_helper_answers_total{answer="audit_unavailable"}': "0+1"},
    "KnimePerUserNotConsuming": {"knime_peruser_consuming": "0"},
    "KnimePerUserJobsParked": {'knime_peruser_jobs_parked_total{reason="no_user"}': "0+1"},
    "KnimePerUserNotParked": {"knime_peruser_jobs_not_parked": "1"},
    "KnimePerUserHeldTooLong": {"knime_peruser_jobs_held_too_long_total": "0+1"},
    "KnimePerUserStartsFail": {'knime_peruser_helper_answers_total{answer="prepare_failed"}': "0+1"},
    "KnimePerUserHostFault": {'knime_peruser_host_fault{reason="spawn_failed"}': "1"},
    "KnimePerUserUserFailing": {"knime_peruser_users_failing": "1"},
    "KnimePerUserHostFull": {'knime_peruser_helper_answers_total{answer="at_capacity"}': "0+1"},
    "KnimePerUserJobsGoRound": {
        "knime_peruser_jobs_returned_total": "0+600",
        "knime_peruser_jobs_handed_over_total": "0+601",
    },
    "KnimePerUserSlowFirstHandOver": {'knime_peruser_hand_over_seconds_bucket{le="20"}': "0"},
    "KnimePerUserFlapping": {'knime_peruser_broker_reconnects_total{connection="consume"}': "0+1"},
    "KnimePerUserStillDraining": {"knime_peruser_helper_draining": "1"},
}


@pytest.fixture(scope="module")
def tool() -> Path:
    try:
        return promtool()
    except CannotBeHad as why:
        pytest.skip(f"no promtool: {why}")


def must_be_taken(command: list[str | Path]) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def of_a_host(series: str) -> str:
    name, _, labels = series.rstrip("}").partition("{")
    return f'{name}{{instance="h"{"," if labels else ""}{labels}}}'


def test_promtool_takes_the_rules_and_every_panel(tool: Path, tmp_path: Path) -> None:
    panels = tmp_path / "panels.yml"
    asked = [text.replace("$__rate_interval", "5m") for _, text in sorted(set(expressions()))]
    rules = [
        {"record": f"panel:{number}", "expr": text}
        for number, text in enumerate(asked)
        if not text.startswith("label_values")
    ]
    panels.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    must_be_taken([tool, "check", "rules", RULES, panels])


def test_promtool_takes_the_page_that_the_listener_serves(tool: Path) -> None:
    async def served() -> bytes:
        service = Service(ListenerConfig())
        page = Metrics(service._look, 1000.0).page()
        await service._stop()
        return page

    run = subprocess.run([tool, "check", "metrics"], input=asyncio.run(served()), capture_output=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


def test_there_is_a_way_to_go_wrong_for_each_alert() -> None:
    assert alerts().keys() == GOES_WRONG.keys()


def test_each_alert_fires_for_what_it_is_named_after_and_for_nothing_else(tool: Path, tmp_path: Path) -> None:
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    tests = [
        {
            "name": alert or "nothing is wrong",
            "interval": "1m",
            "input_series": [
                {"series": of_a_host(name), "values": f"{values}x{MINUTES.get(alert, 60)}"}
                for name, values in (WELL | changes).items()
            ],
            "promql_expr_test": [
                {
                    "expr": firing,
                    "eval_time": f"{MINUTES.get(alert, 60)}m",
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else [],
                }
            ],
        }
        for alert, changes in {"": {}, **GOES_WRONG}.items()
    ]
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    must_be_taken([tool, "test", "rules", file])
