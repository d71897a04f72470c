"""A wrong description of a grader is refused with the name of the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace_core.errors import InvalidRequest
from headrace_rewards.registry import GRADERS, build, validate

CHECK = {"type": "string_check", "name": "n", "input": "{{ item.a }}", "reference": "b", "operation": "eq"}


@pytest.mark.parametrize(
    ("grader", "param", "message"),
    [
        ("string_check", "grader", "object"),
        ({}, "grader.type", "known types: string_check, text_similarity"),
        ({**CHECK, "type": "vibes"}, "grader.type", "'vibes'; known types: string_check, text_similarity"),
        ({**CHECK, "type": ["function"]}, "grader.type", "known types"),
        ({**CHECK, "operation": "equals"}, "grader.operation", "'eq'"),
        ({**CHECK, "input": "{{ item.a"}, "grader.input", "without its"),
        ({**CHECK, "name": ""}, "grader.name", "at least 1 character"),
        ({**CHECK, "inputs": "x"}, "grader.inputs", "not permitted"),
        ({"type": "string_check", "name": "n"}, "grader.input", "grader.reference"),
        ({"type": "function", "name": "n", "function": "grade"}, "grader.function", "path/file.py:function"),
        ({"type": "function", "name": "n", "function": "a.py:"}, "grader.function", "path/file.py:function"),
        ({"type": "function", "name": "n", "function": "no/such.py:f"}, "grader.function", "no/such.py"),
        ({"type": "function", "name": "n", "function": "a.py:f", "timeout": 0}, "grader.function", "grader.timeout"),
    ],
)
def test_refused(grader: Any, param: str, message: str) -> None:
    for read in (validate, build):
        with pytest.raises(InvalidRequest) as refused:
            read(grader)
        assert refused.value.param == param
        assert message in refused.value.message


def test_a_valid_description_has_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g.py").write_text("")
    monkeypatch.chdir(tmp_path)
    spec = validate({"type": "function", "name": "n", "function": "g.py:f"})
    assert spec.model_dump()["function"] == f"{tmp_path}/g.py:f"


def test_every_type_is_named_by_its_own_spec() -> None:
    for name, grader in GRADERS.items():
        assert grader.spec.model_json_schema()["properties"]["type"]["const"] == name
