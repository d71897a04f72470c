"""The threat model held to the tests: each of its rows names tests that exist, and what it says of code is so."""

from __future__ import annotations

import ast
import re

import pytest

from headrace_lab.paths import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
MODEL = PAGE.partition("## Threat model")[2].partition("**Not defended**")[0]
ROWS = [row for row in MODEL.splitlines() if row.startswith("| ")][2:]
NAMED = re.compile(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")
PACKAGES = ("core", "rollout", "learner", "rewards", "gateway")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_row_of_the_threat_model_names_tests_that_exist(row: str) -> None:
    shown = row.split("|")[4]
    named = NAMED.findall(shown)
    assert named
    assert len(named) == shown.count("`test_")
    for test, file in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert test in functions, f"{file} has no {test}"


def test_the_threat_model_speaks_of_everybody() -> None:
    assert len(ROWS) >= 12
    who = " ".join(row.split("|")[1] for row in ROWS)
    for attacker in (
        "page",
        "API user",
        "reward",
        "model",
        "data",
        "user of the machine",
        "network",
        "Redis",
        "package",
    ):
        assert attacker in who, attacker


def test_no_code_of_a_models_folder_is_trusted() -> None:
    """Nothing turns it on, and nothing loads weights that are a pickle."""
    for path in (p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "weights_only"):
                expected = node.arg == "weights_only"
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is expected, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(keyword.arg == "weights_only" for keyword in node.keywords), path
