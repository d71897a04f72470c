"""The Grafana dashboard and the Prometheus alerts: every query parses, and asks for series that the gateway exposes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.core import CounterMetricFamily

from headrace_gateway.exporters.prometheus import _SERIES
from headrace_lab.paths import ROOT

DASHBOARD = ROOT / "docker" / "grafana" / "headrace.json"
ALERTS = ROOT / "docker" / "prometheus" / "alerts.yaml"
EXPOSED = {
    name + ("_total" if kind is CounterMetricFamily else ""): set(labels) for name, (kind, _, labels) in _SERIES.items()
} | {"up": {"job", "instance"}}
"""Series and their labels; `up` is Prometheus' own."""
PAGED = {"JobFailed", "NoProgress", "RewardsFail", "WorkerErrors", "WorkerRestarts"}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for panel in panels()
    for target in panel["targets"]
] + [pytest.param(rule["expr"], id=rule["alert"]) for rule in rules()]


def selectors(node: Any) -> Iterator[Any]:
    """Every series that a query names."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from selectors(node.lhs)
        yield from selectors(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument)
    elif isinstance(node, (promql_parser.AggregateExpr, promql_parser.ParenExpr, promql_parser.UnaryExpr)):
        yield from selectors(node.expr)
    else:
        assert isinstance(node, (promql_parser.NumberLiteral, promql_parser.StringLiteral)), node


@pytest.mark.parametrize("query", QUERIES)
def test_queries_ask_for_series_and_labels_that_there_are(query: str) -> None:
    found = list(selectors(promql_parser.parse(query)))
    assert found
    for selector in found:
        assert selector.name in EXPOSED
        assert {matcher.name for matcher in selector.matchers.matchers} <= EXPOSED[selector.name], selector.name
    known = set().union(*(EXPOSED[s.name] for s in found))
    for listed in re.findall(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)", query):
        assert {label.strip() for label in listed.split(",")} <= known


@pytest.mark.parametrize("query", ["headrace_nothing", 'headrace_jobs{job="a"}'])
def test_a_wrong_query_would_be_found(query: str) -> None:
    with pytest.raises(AssertionError):
        test_queries_ask_for_series_and_labels_that_there_are(query)


def test_every_panel_says_what_good_looks_like() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert [panel["title"] for panel in panels() if not panel["description"]] == []


def test_legends_are_of_labels_that_the_query_leaves() -> None:
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            found = selectors(promql_parser.parse(target["expr"]))
            assert named <= set().union(*(EXPOSED[s.name] for s in found)), panel["title"]


def test_alerts_say_what_to_do_and_whom_they_wake() -> None:
    paged = {rule["alert"].removeprefix("Headrace") for rule in rules() if rule["labels"]["severity"] == "page"}
    assert paged >= PAGED
    assert all(rule["annotations"].keys() == {"summary", "action", "runbook"} for rule in rules())


def test_every_alert_has_its_section_on_the_on_call_page_and_names_it() -> None:
    alerts = [rule["alert"] for rule in rules()]
    sections = re.findall(r"^## (Headrace\w+)$", (ROOT / "docs" / "on-call.md").read_text(), re.MULTILINE)
    assert sections == alerts
    assert [rule["annotations"]["runbook"] for rule in rules()] == [f"docs/on-call.md#{a.lower()}" for a in alerts]


def test_what_the_containers_are_given_is_there() -> None:
    services = yaml.safe_load((ROOT / "docker" / "monitoring.yaml").read_text())["services"]
    assert set(services) == {"prometheus", "grafana"}
    mounted = [volume for service in services.values() for volume in service["volumes"] if volume.startswith("./")]
    assert all((ROOT / "docker" / volume.split(":")[0]).exists() for volume in mounted)
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])
    folder = ROOT / "docker" / "grafana" / "provisioning" / "dashboards" / "headrace.yaml"
    [provider] = yaml.safe_load(folder.read_text())["providers"]
    assert f"./grafana/headrace.json:{provider['options']['path']}/headrace.json:ro" in mounted


def test_alerts_fire_when_they_should() -> None:
    promtool = shutil.which("promtool", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert promtool is not None, "`make setup-dev` brings it where it runs as root; else install Debian's prometheus"
    cases = Path(__file__).with_name("alerts_cases.yaml")
    for command in (["check", "rules", str(ALERTS)], ["test", "rules", str(cases)]):
        done = subprocess.run([promtool, *command], check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
