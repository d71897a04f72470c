"""`python`: OpenAI's grader of source text."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, Outcome, Score
from headrace_lab.rewards import score_once
from headrace_rewards.graders.python_source import PythonReward, PythonSpec
from headrace_rewards.protocol import Sample
from headrace_rewards.registry import build, validate

GRADE = '''
import json

def grade(sample, item) -> float:
    """As in OpenAI's guide."""
    wanted = json.loads(item["reference"])
    if sample["output_json"] == wanted: return 1.0
    raise ValueError(f"{sample['output_text']} is not {wanted}")
'''


async def scored(grader: dict[str, Any], *samples: Sample) -> list[Outcome]:
    reward = build(grader)
    return await score_once(reward, samples)


async def test_openais_graders_run_unchanged() -> None:
    grader = {"type": "python", "name": "same", "source": GRADE, "image_tag": "2025-05-08"}
    item = {"reference": '{"a": 1}'}
    right, wrong = await scored(grader, Sample('{"a":1}', item), Sample("nonsense", item))
    assert right == Score(1.0)
    assert isinstance(wrong, Failure)
    assert (wrong.kind, wrong.message) == ("exception", "ValueError: nonsense is not {'a': 1}")
    assert 'File "grader.source", line 8, in grade\n    raise ValueError(' in wrong.traceback


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef grade(sample, item:\n    pass", "grader.source, line 2: SyntaxError: '(' was never closed"),
        ("import sys\n\nsys.exit(1)", "grader.source, line 3: SystemExit: 1"),
        ("import no_such_module", "line 1: ModuleNotFoundError"),
        ("def score(sample, item): return 1", "grader.source has no 'grade'; it has: score"),
        ("grade = 1", "'grade' in grader.source is not a function"),
        ("def grade(): return 1", "takes no argument by name"),
        ("def grade(item): return 1\n\x00", "grader.source"),
    ],
)
async def test_a_source_that_does_not_load_names_the_line(source: str, message: str) -> None:
    reward = build({"type": "python", "name": "x", "source": source})
    with pytest.raises(InvalidRequest) as refused:
        await reward.start()
    assert message in refused.value.message
    assert refused.value.param == "grader.source"


async def test_it_has_two_gigabytes_and_no_more() -> None:
    source = "import resource\ndef grade(sample, item): return resource.getrlimit(resource.RLIMIT_AS)[0]"
    assert await scored({"type": "python", "name": "x", "source": source}, Sample("a")) == [Score(float(2 << 30))]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"source": "#" * 256_000}, "grader.source"),
        ({}, "grader.source"),
        ({"source": "", "timeout": 121}, "grader.timeout"),
        ({"source": "", "workers": 0}, "grader.workers"),
    ],
)
def test_openais_limits(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validate({"type": "python", "name": "x", **fields})
    assert refused.value.param == param
    assert validate({"type": "python", "name": "x", "source": "#" * 255_999}).type == "python"


async def test_a_group_is_spread_over_the_workers() -> None:
    spec = PythonSpec(type="python", name="x", workers=2, source="import os\ndef grade(item): return os.getpid()")
    reward = PythonReward(spec, level="limits")  # below `isolated` process numbers tell them apart
    outcomes = await score_once(reward, [Sample("")] * 2)
    values = {outcome.value for outcome in outcomes if isinstance(outcome, Score)}
    assert len(values) == 2
