"""A job with each kind of reward, through the request that a user makes: REST, sandbox, rollout, learner, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .reward_server import LABELS, reward_server
from .service import ADDER, Service

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
    "verifree": {"algorithm": "rloo"},
    "jepo": {"algorithm": "rloo"},
    "latro": {"algorithm": "rloo", "kl_coefficient": 0.05},
}


@pytest.fixture(scope="module")
def asked_at() -> Iterator[str]:
    with reward_server() as address:
        yield address


@pytest.fixture(scope="module")
def service(asked_at: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    rules = {"HEADRACE_REWARD_HOSTS": json.dumps([asked_at]), "HEADRACE_JUDGE_URL": f"http://{asked_at}/v1"}
    service = Service(tmp_path_factory.mktemp("rewards") / "data", rules)
    yield service
    assert service.stop() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_trains_on_it(service: Service, asked_at: str, kind: str) -> None:
    grader = json.loads(json.dumps(KINDS[kind]).replace("HOST", asked_at))
    settings = {"n_steps": 1, "eval_samples": 4, "eval_interval": 1} | SETTINGS.get(kind, {})
    job_id = service.submit(grader, **settings)
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
