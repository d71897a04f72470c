"""A job with each kind of reward, through the request that a user makes: REST, sandbox, rollout, learner, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace_lab.paths import ADDER
from headrace_lab.services.service import Service
from headrace_rewards.registry import GRADERS

from .reward_server import LABELS, reward_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CORRECT = {"type": "function", "name": "correct", "function": f"{ADDER / 'reward.py'}:correct"}
EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "like",
}
SIMILAR = {
    "type": "text_similarity",
    "name": "similar",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reasoning }}",
    "evaluation_metric": "rouge_l",
}
SOURCE = "def grade(sample, item):\n    return float(item['answer'] in sample['output_text'])\n"
JUDGED = [{"role": "user", "content": "{{ sample.output_text }}"}]
PATTERN = {"type": "reasoning_pattern", "name": "pattern"}

KINDS: dict[str, dict[str, Any]] = {
    "function": CORRECT,
    "registered": {"type": "registered", "name": "plug-in", "reward": "brevity"},
    "reasoning_gym": {"type": "reasoning_gym", "name": "sums", "task": "chain_sum"},
    "verifiers": {"type": "verifiers", "name": "rubric", "environment": "brief-sums"},
    "string_check": EXACT,
    "text_similarity": SIMILAR,
    "python": {"type": "python", "name": "source", "source": SOURCE},
    "multi": {
        "type": "multi",
        "name": "both",
        "graders": {"exact": EXACT, "similar": SIMILAR},
        "calculate_output": "0.5 * exact + 0.5 * similar",
    },
    "endpoint": {"type": "endpoint", "name": "digits", "url": "http://HOST/score"},
    "score_model": {"type": "score_model", "name": "judge", "model": "judge", "input": JUDGED},
    "label_model": {
        **{"type": "label_model", "name": "labels", "model": "judge", "input": JUDGED},
        **{"labels": list(LABELS), "passing_labels": ["wordy"]},
    },
    "math_verify": {"type": "math_verify", "name": "maths", "reference": "{{ item.answer }}"},
    "noisy": {"type": "noisy", "name": "noise", "grader": CORRECT, "flip": 0.2, "seed": 1},
    "debias": {
        **{"type": "debias", "name": "undone", "flip": 0.2},
        "grader": {"type": "noisy", "name": "noise", "grader": CORRECT, "flip": 0.2, "seed": 1},
    },
    "reasoning_pattern": PATTERN,
    "calibrated": {"type": "calibrated", "name": "calibrated", "grader": SIMILAR},
    "audited": {"type": "audited", "name": "audited", "grader": EXACT, "audit": CORRECT, "share": 1.0},
    "verifree": {"type": "verifree", "name": "free", "evaluation": CORRECT},
    "jepo": {"type": "jepo", "name": "free", "evaluation": CORRECT},
    "latro": {"type": "latro", "name": "free", "evaluation": CORRECT},
    "rlpr": {"type": "rlpr", "name": "free", "evaluation": CORRECT},
    "majority_vote": {"type": "majority_vote", "name": "vote", "evaluation": CORRECT},
    "self_certainty": {"type": "self_certainty", "name": "certain", "evaluation": CORRECT},
    "entropy": {"type": "entropy", "name": "entropy", "evaluation": CORRECT},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "reasoning_gym": {"max_context": 192},
    "verifree": {"algorithm": "rloo"},
    "jepo": {"algorithm": "rloo"},
    "latro": {"algorithm": "rloo", "kl_coefficient": 0.05},
}
SUMS = "reasoning_gym:chain_sum?size=40&min_terms=2&max_terms=2&min_digits=1&max_digits=1&seed="
ROWS = {"reasoning_gym": (f"{SUMS}1", f"{SUMS}2"), "verifiers": ("verifiers:brief-sums", "verifiers:brief-sums")}
ENVIRONMENT = """
import verifiers as vf
from datasets import Dataset

def right(completion, answer):
    return float(answer in completion[-1]["content"])

def load_environment():
    rows = [{"question": f"{n} + {n} =", "answer": str(2 * n)} for n in range(10, 50)]
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[right]))
"""
PLUG_IN = {
    "brief_sums.py": ENVIRONMENT,
    "acme_rewards.py": "def brevity(completion):\n    return 1 / (1 + len(completion))\n",
    "acme_rewards-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: acme_rewards\nVersion: 1.0\n",
    "acme_rewards-1.0.dist-info/entry_points.txt": "[headrace.rewards]\nbrevity = acme_rewards:brevity\n",
}


@pytest.fixture(scope="module")
def asked_at() -> Iterator[str]:
    with reward_server() as address:
        yield address


@pytest.fixture(scope="module")
def plug_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the service's import path with a package and an environment installed in it."""
    folder = tmp_path_factory.mktemp("installed")
    for name, text in PLUG_IN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def service(asked_at: str, plug_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    rules = {"HEADRACE_REWARD_HOSTS": json.dumps([asked_at]), "HEADRACE_JUDGE_URL": f"http://{asked_at}/v1"}
    installed = {"PYTHONPATH": os.pathsep.join([str(plug_in), *filter(None, [os.environ.get("PYTHONPATH")])])}
    service = Service(tmp_path_factory.mktemp("rewards") / "data", rules | installed)
    yield service
    assert service.stop() == 0


def test_every_kind_is_here() -> None:
    assert set(KINDS) == set(GRADERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_trains_on_it(service: Service, asked_at: str, kind: str) -> None:
    grader = json.loads(json.dumps(KINDS[kind]).replace("HOST", asked_at))
    settings = {"n_steps": 1, "eval_samples": 4, "eval_interval": 1} | SETTINGS.get(kind, {})
    job_id = service.submit(grader, rows=ROWS.get(kind), **settings)
    service.wait(job_id, "succeeded")
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["states"]["trained"] == 4
    assert ledger["states"]["reward_failed"] == 0
    (step,) = service.metrics(job_id, "step")
    assert step["completions"] > 0
    assert service.metrics(job_id, "evaluation")[-1]["reward_failed"] == 0
    workers = service.metrics(job_id, "worker")
    assert not any(kind.startswith("reward_") for worker in workers for kind in worker["errors"])
