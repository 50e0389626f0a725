"""What is under etc/ for Prometheus and Grafana, read; and Prometheus's own promtool, which judges it.

promtool is taken from the distribution's package, unpacked and never installed: the package would start a server.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

ETC: Final = Path(__file__).resolve().parents[2] / "etc"
RULES: Final = ETC / "prometheus-alerts.yml"
_CACHE: Final = Path("/var/cache/knime-peruser-tests")


class CannotBeHad(Exception):
    """No promtool here; the text says why."""


def expressions() -> Iterator[tuple[str, str]]:
    """Give each expression of the dashboard and of the rules, and where it stands."""
    dashboard = json.loads((ETC / "grafana-dashboard.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                yield panel["title"], f'{metrics_of(target["expr"])[0]}{{{label}=""}}'
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    yield from alerts().items()


def alerts() -> dict[str, str]:
    """Give the expression of each alert rule."""
    found = {}
    for rule in re.split(r"\n\s+- alert: ", RULES.read_text("utf-8"))[1:]:
        expression = re.search(r"expr:(?: >-)?(.*?)\n\s+(?:for|labels):", rule, re.DOTALL)
        assert expression, rule
        found[rule.split("\n")[0]] = " ".join(expression[1].split())
    return found


def metrics_of(expression: str) -> list[str]:
    """Give the names of our metrics in an expression."""
    return re.findall(r"\bknime_peruser_\w+", expression)


def promtool() -> Path:
    """Give the program.

    Raises:
        CannotBeHad: it is neither installed nor can the package be loaded.
    """
    if found := shutil.which("promtool"):
        return Path(found)
    program = _CACHE / "promtool"
    if not program.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=_CACHE) as directory:
            os.replace(_unpacked(Path(directory)), program)  # noqa: PTH105 - complete or not at all
    return program


def _unpacked(directory: Path) -> Path:
    """Unpack the first package that has it: Debian 12 ships it with the server, Debian 13 in a package of its own."""
    said = []
    for package in ("promtool", "prometheus"):
        load = ["apt-get", "-o", "APT::Sandbox::User=root", "download", "--quiet", package]
        done = subprocess.run(load, cwd=directory, capture_output=True, text=True, check=False)
        said.append(f"{' '.join(load)}: {done.stderr.strip()}")
        for archive in directory.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, directory], check=True)
        if (program := directory / "usr/bin/promtool").exists():
            return program
    raise CannotBeHad("; ".join(said))
