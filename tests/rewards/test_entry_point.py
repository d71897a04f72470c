"""`registered`: a reward of an installed package, found by its entry point. The package is real, its folder its own."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Outcome, Score
from headrace_lab.rewards import score_once
from headrace_rewards.protocol import Sample
from headrace_rewards.registry import build, validate

MODULES = {
    "acme_rewards/__init__.py": "",
    "acme_rewards/words.py": "def count(text):\n    return len(text.split())\n",
    "acme_rewards/text.py": """
        from .words import count

        def brevity(completion, most=10):
            return max(0.0, 1 - count(completion) / most)

        async def exact(completions, answer, **kwargs):
            return [float(c == a) * kwargs.get("weight", 1) for c, a in zip(completions, answer)]
    """,
    "acme_rewards/broken.py": "import no_such_module_of_anybody\n",
}
ENTRY_POINTS = """
    [headrace.rewards]
    brevity = acme_rewards.text:brevity
    exact = acme_rewards.text:exact
    broken = acme_rewards.broken:anything
    absent = acme_rewards.text:absent
    method = acme_rewards.text:Class.method
"""


@pytest.fixture(autouse=True)
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package acme-rewards, installed where this process finds it and its children do not."""
    install(tmp_path, "acme_rewards", ENTRY_POINTS, MODULES)
    monkeypatch.syspath_prepend(str(tmp_path))


def install(folder: Path, package: str, entry_points: str, modules: dict[str, str]) -> None:
    metadata = {"METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", "entry_points.txt": entry_points}
    for name, text in {**modules, **{f"{package}-1.0.dist-info/{n}": t for n, t in metadata.items()}}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def described(reward: str, **fields: Any) -> dict[str, Any]:
    return {"type": "registered", "name": "plugged", "reward": reward, **fields}


async def scored(grader: dict[str, Any], *samples: Sample) -> list[Outcome]:
    reward = build(grader)
    return await score_once(reward, samples)


async def test_a_function_of_a_package_that_imports_its_neighbours() -> None:
    samples = [Sample("one two"), Sample("one two three four five")]
    assert await scored(described("brevity"), *samples) == [Score(0.8), Score(0.5)]


async def test_options_win_over_the_row() -> None:
    samples = [Sample("one two", {"most": 4})]
    assert await scored(described("brevity"), *samples) == [Score(0.5)]
    assert await scored(described("brevity", options={"most": 20}), *samples) == [Score(0.9)]


async def test_an_async_function_of_the_group_with_options_in_kwargs() -> None:
    samples = [Sample("2", {"answer": "2"}), Sample("3", {"answer": "2"})]
    assert await scored(described("exact", options={"weight": 3}), *samples) == [Score(3.0), Score(0.0)]


async def test_an_option_that_the_function_does_not_take() -> None:
    with pytest.raises(InvalidRequest, match="takes no option 'least'") as refused:
        await scored(described("brevity", options={"least": 1}), Sample("a"))
    assert refused.value.param == "grader.reward"


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("broken", "no_such_module_of_anybody"),
        ("absent", r"acme_rewards\.text has no 'absent'; it has: count, brevity"),
    ],
)
async def test_a_package_that_does_not_load(reward: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        await scored(described(reward), Sample("a"))
    assert refused.value.param == "grader.reward"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"'brevty'; registered are: absent, brevity, broken, exact, method") as no:
        validate(described("brevty"))
    assert no.value.param == "grader.reward"


def test_what_is_no_function_of_a_module() -> None:
    with pytest.raises(InvalidRequest, match="not of the form module:function"):
        validate(described("method"))


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "other", "other_rewards", "[headrace.rewards]\nbrevity = other_rewards:b\n", {})
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    with pytest.raises(InvalidRequest, match=r"more than once: acme_rewards\.text:brevity, other_rewards:b"):
        validate(described("brevity"))


def test_a_package_that_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = validate(described("brevity"))
    monkeypatch.undo()
    with pytest.raises(InvalidRequest, match="no package has the group") as refused:
        build(spec.model_dump())
    assert refused.value.param == "grader.reward"
