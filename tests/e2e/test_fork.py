"""A fork, through the whole system: it trains on from its parent's model."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load_file

from headrace_lab.services.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_fork_trains_on_from_the_checkpoint(service: Service) -> None:
    parent = service.submit(n_steps=1, eval_interval=1)
    service.wait(parent, "succeeded")
    asked = {"hyperparameters": {"n_steps": 2, "learning_rate": 1e-3}, "suffix": "on"}
    answer = httpx.post(f"{service.address}/v1/fine_tuning/jobs/{parent}/fork", json=asked, timeout=60).json()
    assert answer["forked_from"]["fine_tuning_job_id"] == parent
    assert answer["forked_from"]["step_number"] == 1
    service.wait(answer["id"], "succeeded")

    told = service.messages(answer["id"])
    assert told[0].endswith(f"from step 1 of {parent}")
    steps = service.metrics(answer["id"], "step")
    assert [step["step"] for step in steps] == [1, 2]
    assert steps[0]["learning_rate"] == pytest.approx(1e-3)

    models = {m.id: Path(m.to_dict()["path"]) for m in service.openai.models.list()}  # type: ignore[arg-type]
    made = service.openai.fine_tuning.jobs.retrieve(answer["id"]).fine_tuned_model
    assert made is not None
    assert made.startswith(f"ft:{answer['model']}:headrace:on:")
    before, after = (load_file(models[name] / "model.safetensors") for name in (answer["model"], made))
    largest = max(float(abs(after[name] - before[name]).max()) for name in before)
    assert 0 < largest < 0.02, "two steps away from the checkpoint's weights, and no further"

    last = service.metrics(parent, "evaluation")[-1]
    first = service.metrics(answer["id"], "evaluation")[0]
    assert (last["step"], first["step"]) == (1, 0)
    assert first["reward_mean"] == last["reward_mean"], "the same weights say the same"
