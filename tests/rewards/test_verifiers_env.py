"""Environments of the real verifiers library, from a package that is installed beside the service."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, Score
from headrace_core.storage.dataset import read_rows
from headrace_lab.rewards import score_once, started
from headrace_rewards.protocol import Reward, Sample
from headrace_rewards.registry import build, validate

pytestmark = pytest.mark.slow

WORD_SORT = """
    import verifiers as vf
    from datasets import Dataset

    def right(completion, answer, parser):
        return float(parser.parse_answer(completion) == answer)

    async def brief(completion, state, info, **kwargs):
        state["words"] = len(completion[-1]["content"].split())
        if info["many"] < 0:
            raise ValueError("no words to sort")
        return state["words"] / info["many"]

    def counted(state):
        return state["words"]

    def shares(completions, **kwargs):
        said = [c[-1]["content"] for c in completions]
        return [said.count(text) / len(said) for text in said]

    class Prepared(vf.SingleTurnEnv):
        async def setup_state(self, state, **kwargs):
            assert state["completion"] == [] and state["prompt"][-1]["role"] == "user"
            state["wanted"] = sorted(state["answer"].split())
            return state

    def as_prepared(completion, state):
        return float(completion[-1]["content"].split() == state["wanted"])

    def load_environment(many=3, whole_group=False, turns=1, prepared=False):
        words = ["pear apple fig", "b a", "z y x w"]
        data = Dataset.from_list([
            {"question": f"Sort: {w}", "answer": " ".join(sorted(w.split())), "info": {"many": many}} for w in words
        ])
        parser = vf.Parser()
        first = vf.Rubric(funcs=[right, brief, counted], weights=[1.0, 0.5, 0.0], parser=parser)
        rubric = vf.RubricGroup([first, vf.Rubric(funcs=[shares], weights=[0.25])]) if whole_group else first
        if turns > 1:
            class Turns(vf.MultiTurnEnv):
                async def env_response(self, messages, state, **kwargs):
                    return []
            return Turns(dataset=data, rubric=rubric, parser=parser)
        if prepared:
            return Prepared(dataset=data, rubric=vf.Rubric(funcs=[as_prepared], weights=[1.0]))
        return vf.SingleTurnEnv(
            dataset=data, eval_dataset=data.select([0]), system_prompt="Be brief.", rubric=rubric, parser=parser
        )
"""
ROW = {"answer": "apple fig pear", "info": {"many": 3}, "task": "default"}
PROMPT = [{"role": "user", "content": "Sort: pear apple fig"}]


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that holds the environment `acme/word-sort`."""
    folder = tmp_path_factory.mktemp("environments")
    (folder / "word_sort.py").write_text(textwrap.dedent(WORD_SORT))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def described(**fields: Any) -> dict[str, Any]:
    return {"type": "verifiers", "name": "sorted", "environment": "acme/word-sort", **fields}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def reward(installed: Path) -> AsyncIterator[Reward]:
    reward = build(described())
    async with started(reward):
        yield reward


def sample(text: str, **item: Any) -> Sample:
    return Sample(text, ROW | item, PROMPT)


@pytest.mark.asyncio(loop_scope="module")
async def test_each_function_with_its_weight(reward: Reward) -> None:
    right, wrong = await reward.score([sample("apple fig pear"), sample("no", info={"many": 4})])
    assert right == Score(1.5, {"right": 1.0, "brief": 1.0, "counted": 3.0, "num_turns": 1.0, "score": 1.5})
    assert wrong == Score(0.125, {"right": 0.0, "brief": 0.25, "counted": 1.0, "num_turns": 1.0, "score": 0.125})


@pytest.mark.asyncio(loop_scope="module")
async def test_a_function_that_raises_failed_and_is_not_worth_nothing(reward: Reward) -> None:
    """The library logs the error, and takes 0 for the reward."""
    failed, right = await reward.score([sample("no", info={"many": -1}), sample("apple fig pear")])
    assert isinstance(failed, Failure)
    assert (failed.kind, failed.message) == ("exception", "ValueError: no words to sort")
    assert "brief" in (failed.traceback or "")
    assert isinstance(right, Score)


async def test_an_environment_sets_its_state_up() -> None:
    reward = build(described(arguments={"prepared": True}))
    outcomes = await score_once(reward, [sample("apple fig pear"), sample("no")])
    assert [o.components["as_prepared"] for o in outcomes if isinstance(o, Score)] == [1.0, 0.0]


async def test_a_function_of_the_group_among_those_of_one_completion() -> None:
    reward = build(described(arguments={"whole_group": True}))
    outcomes = await score_once(reward, [sample("apple fig pear"), sample("no"), sample("no"), sample("no")])
    assert [o.components["shares"] for o in outcomes if isinstance(o, Score)] == [0.25, 0.75, 0.75, 0.75]
    assert isinstance(outcomes[0], Score)
    assert outcomes[0].value == 1.5 + 0.25 * 0.25


def made(folder: Path, reference: str) -> dict[str, Any]:
    """What `python -m headrace_rewards tasks` answers; rows are written to rows.jsonl."""
    question = {"reference": reference, "path": str(folder / "rows.jsonl"), "max_bytes": 1_000_000}
    done = subprocess.run(
        [sys.executable, "-m", "headrace_rewards", "tasks"],
        input=json.dumps(question), capture_output=True, text=True, timeout=120, check=True,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.asyncio(loop_scope="module")
async def test_its_rows_are_a_file_that_it_scores(installed: Path, reward: Reward) -> None:
    assert made(installed, "verifiers:acme/word-sort?size=2&seed=1&many=4") == {"ok": True, "error": None, "rows": 2}
    first, second = read_rows(installed / "rows.jsonl")
    assert [m["role"] for m in first.messages] == ["system", "user"]
    assert first.item["info"] == {"many": 4}
    assert first.item["answer"] != second.item["answer"]
    (outcome,) = await reward.score([Sample(first.item["answer"], first.item, first.messages)])
    assert isinstance(outcome, Score)
    assert outcome.components["right"] == 1.0


def test_the_held_out_split_has_rows_of_its_own(installed: Path) -> None:
    assert made(installed, "verifiers:word-sort?split=eval")["rows"] == 1
    assert read_rows(installed / "rows.jsonl")[0].item["answer"] == "apple fig pear"


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("verifiers:word-sort?split=test", "split is one of train, eval, not 'test'"),
        ("verifiers:word-sort?size=0", "size is a number from 1"),
        ("verifiers:no-such-words", "no environment 'no-such-words' is installed"),
        ("verifiers:word-sort?hard=1", "unexpected keyword argument 'hard'"),
    ],
)
def test_rows_that_cannot_be_made(installed: Path, reference: str, fault: str) -> None:
    answer = made(installed, reference)
    assert not answer["ok"]
    assert fault in answer["error"]["message"]


@pytest.mark.parametrize(
    ("environment", "fault"), [("sort words", "no module 'sort words'"), ("nothing-here", "no module 'nothing_here'")]
)
def test_an_environment_that_is_not_installed_is_refused_by_name(environment: str, fault: str) -> None:
    with pytest.raises(InvalidRequest, match=fault):
        validate(described(environment=environment))


async def test_an_environment_of_several_turns_is_refused_at_the_start() -> None:
    reward = build(described(arguments={"turns": 2}))
    with pytest.raises(InvalidRequest, match="only single-turn environments"):
        await reward.start()
