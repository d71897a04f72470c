"""A wrong description of a grader is refused with the name of the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest
from headrace_rewards.registry import GRADERS, build, validate

CHECK = {"type": "string_check", "name": "n", "input": "{{ item.a }}", "reference": "b", "operation": "eq"}


@pytest.mark.parametrize(
    ("grader", "param", "message"),
    [
        ("string_check", "grader", "object"),
        ({}, "grader.type", "known types: audited, calibrated"),
        ({**CHECK, "type": "vibes"}, "grader.type", "'vibes'; known types: audited, calibrated"),
        ({**CHECK, "type": ["function"]}, "grader.type", "known types"),
        ({**CHECK, "operation": "equals"}, "grader.operation", "'eq'"),
        ({**CHECK, "input": "{{ item.a"}, "grader.input", "without its"),
        ({**CHECK, "name": ""}, "grader.name", "at least 1 character"),
        ({**CHECK, "inputs": "x"}, "grader.inputs", "not permitted"),
        ({"type": "string_check", "name": "n"}, "grader.input", "grader.reference"),
        ({"type": "function", "name": "n", "function": "grade"}, "grader.function", "path/file.py:function"),
        ({"type": "function", "name": "n", "function": "a.py:"}, "grader.function", "path/file.py:function"),
        ({"type": "function", "name": "n", "function": "a.py:f", "timeout": 0}, "grader.timeout", "greater than 0"),
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


def test_a_function_is_taken_from_the_operators_folders_alone(tmp_path: Path) -> None:
    for folder in ("listed", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text("def grade(completion): return 1")
    (tmp_path / "listed" / "link.py").symlink_to(tmp_path / "other" / "r.py")

    def described(path: str) -> dict[str, Any]:
        function = {"type": "function", "name": "f", "function": f"{tmp_path / path}:grade"}
        return {"type": "multi", "name": "n", "graders": {"f": function}, "calculate_output": "f"}

    rules = RewardPermissions(folders=(str(tmp_path / "listed"),))
    build(described("listed/r.py"), rules)
    build(described("other/r.py"))
    for path in ("other/r.py", "listed/link.py", "listed/../other/r.py"):
        with pytest.raises(InvalidRequest, match="HEADRACE_REWARD_FOLDERS") as refused:
            build(described(path), rules)
        assert refused.value.param == "grader.function"


def test_of_files_outside_the_operators_folders_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "listed").mkdir()
    outside = tmp_path / "outside"
    (outside / "folder.py").mkdir(parents=True)
    (outside / "there.py").write_text("def grade(completion): return 1")
    (outside / "loop.py").symlink_to(outside / "loop.py")
    (outside / "dangling.py").symlink_to(outside / "nowhere.py")
    rules = RewardPermissions(folders=(str(tmp_path / "listed"),))

    def answered(path: str) -> tuple[str, str | None]:
        with pytest.raises(InvalidRequest) as refused:
            build({"type": "function", "name": "f", "function": f"{tmp_path}/{path}:grade"}, rules)
        return refused.value.message, refused.value.param

    names = ("there", "missing", "folder", "loop", "dangling", "no/such/folder", "there.py/below", "n" * 300)
    assert len({answered(f"outside/{name}.py") for name in names}) == 1
    # A way back over something outside says nothing of it either.
    ways = {answered(f"outside/{name}/../../listed/missing.py") for name in ("folder.py", "there.py", "missing")}
    assert ways == {(f"there is no file {tmp_path}/listed/missing.py", "grader.function")}


@pytest.mark.parametrize("path", ["/a\0b.py", "/a\ud800b.py"])
def test_what_can_be_no_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be the path of a file") as refused:
        validate({"type": "function", "name": "f", "function": f"{path}:grade"})
    assert refused.value.param == "grader.function"


def test_without_a_list_functions_are_taken_where_no_keys_are_asked_for() -> None:
    assert Settings().reward_rules.folders is None
    assert Settings(require_keys="on").reward_rules.folders == ()
    assert Settings(require_keys="on", reward_folders=("/a",)).reward_rules.folders == ("/a",)
    assert Settings(reward_folders=("/a",)).reward_rules.folders == ("/a",)


def test_the_parts_of_a_grader_share_what_processes_there_may_be() -> None:
    part = {"type": "math_verify", "name": "m", "workers": 20}
    graders = {f"m{number}": {**part, "name": f"m{number}"} for number in range(4)}
    whole = {"type": "multi", "name": "all", "graders": graders, "calculate_output": "m0 + m1 + m2 + m3"}
    with pytest.raises(InvalidRequest, match=r"80 processes .* allows 64"):
        build(whole)
    build(whole, RewardPermissions(processes=80))
