"""Jobs through the whole system: REST, Redis, Ray, an engine, the learner, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoModelForCausalLM

from headrace_lab.services.service import Service
from headrace_lab.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def shared_memory() -> set[Path]:
    """Segments that Python processes of this machine hold, or have left behind."""
    return set(Path("/dev/shm").glob("psm_*"))


@pytest.mark.vllm
def test_a_job_on_the_real_vllm_trains_in_flight_and_leaves_a_model(service: Service) -> None:
    before = shared_memory()
    job_id = service.submit(engine="vllm", n_steps=6, batch_size=8, max_staleness=2, max_running=32, keep_checkpoints=6)
    service.wait(job_id, "succeeded", timeout=400)

    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["version"] == 6
    assert ledger["states"]["trained"] == ledger["admitted"] == 48
    assert ledger["largest_age"] <= 2

    updates = service.metrics(job_id, "update")
    assert updates[-1]["version"] == 6
    assert any(u["requests_in_flight"] > 0 for u in updates), "no update met a request in flight"
    evaluations = service.metrics(job_id, "evaluation")
    first, middle, last = (e["step"] for e in evaluations)
    assert (first, last) == (0, 6)
    assert middle in (3, 4, 5), "due from version 3 on; it says which one the worker had by then"

    job = service.openai.fine_tuning.jobs.retrieve(job_id)
    assert job.fine_tuned_model in {m.id for m in service.openai.models.list()}
    steps = [c.step_number for c in service.openai.fine_tuning.jobs.checkpoints.list(job_id)]
    assert steps == [6, 5, 4, 3, 2, 1]
    wait_until(lambda: shared_memory() <= before, "the engine's shared memory is given back")


@pytest.mark.parametrize("max_staleness", [0, pytest.param(1, marks=pytest.mark.fast)])
def test_no_trained_token_is_older_than_the_bound(service: Service, max_staleness: int) -> None:
    job_id = service.submit(max_staleness=max_staleness, n_steps=5)
    service.wait(job_id, "succeeded")
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["largest_age"] <= max_staleness
    ages = {int(age) for step in service.metrics(job_id, "step") for age in step["ages"]}
    assert min(ages) == 0
    if max_staleness == 0:
        assert ages == {0}


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "remax", "group_size": 2, "kl_coefficient": 0.05},
        {"algorithm": "ppo", "proximal": "interpolate"},
        {"algorithm": "dapo", "importance": "mask"},
        {"algorithm": "grpo", "lora_rank": 4, "minibatches": 2, "learning_rate": 1e-3},
    ],
    ids=["remax", "ppo", "dapo", "lora"],
)
def test_other_ways_of_learning_run_end_to_end(service: Service, settings: dict[str, Any]) -> None:
    job_id = service.submit(**settings)
    service.wait(job_id, "succeeded")
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["states"]["trained"] == 12
    steps = service.metrics(job_id, "step")
    assert [s["step"] for s in steps] == [1, 2, 3]
    assert all(s["tokens"] > 0 for s in steps)
    measured = {"remax": "reference_kl", "ppo": "value_loss"}.get(settings["algorithm"], "importance_cut_share")
    assert any(measured in s["extra"] for s in steps)  # a step whose groups all have equal rewards computes nothing
    # What the rollout worker samples from at the end is near what the learner trains: the weights have arrived.
    assert abs(steps[-1]["behaviour_kl"]) < 0.2


def test_a_cancelled_job_ends_and_makes_room(service: Service) -> None:
    job_id = service.submit(n_steps=500)
    service.wait_for_step(job_id, 1)
    assert service.openai.fine_tuning.jobs.cancel(job_id).status == "cancelled"
    following = service.submit(n_steps=1)
    service.wait(following, "succeeded")
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    assert ledger["states"]["leased"] == ledger["states"]["queued"] == ledger["states"]["claimed"] == 0


def test_a_paused_job_leaves_a_model_and_goes_on_where_it_was(service: Service) -> None:
    job_id = service.submit(n_steps=400, checkpoint_interval=400)
    service.wait_for_step(job_id, 2)
    assert service.openai.fine_tuning.jobs.pause(job_id).status == "paused"
    wait_until(lambda: any("paused" in message for message in service.messages(job_id)), "it says that it is paused")
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    assert ledger["balanced"]
    (saved,) = service.openai.fine_tuning.jobs.checkpoints.list(job_id).data
    assert saved.step_number == ledger["version"] >= 2
    assert saved.fine_tuned_model_checkpoint in {m.id for m in service.openai.models.list()}
    following = service.submit(n_steps=1)  # it holds no resources
    service.wait(following, "succeeded")

    service.openai.fine_tuning.jobs.resume(job_id)
    service.wait_for_step(job_id, saved.step_number + 1)
    steps = [s["step"] for s in service.metrics(job_id, "step")]
    assert steps == list(range(1, len(steps) + 1))
    service.openai.fine_tuning.jobs.cancel(job_id)


def test_a_job_whose_reward_fails_says_why_and_the_service_goes_on(service: Service, tmp_path: Path) -> None:
    reward = tmp_path / "reward.py"
    # On the completions that it is tried on at submission it works, on those of the job it never does.
    reward.write_text(
        "def broken(sample, item):\n"
        "    if sample['output_text'] in ('', item['answer']):\n"
        "        return 0.0\n"
        "    raise LookupError('no such answer')\n"
    )
    grader = {"type": "function", "name": "broken", "function": f"{reward}:broken"}
    job_id = service.submit(grader, n_steps=2, batch_size=2, group_size=2)
    service.wait(job_id, "failed")
    error = service.openai.fine_tuning.jobs.retrieve(job_id).error
    assert error is not None
    assert error.code == "too_many_reward_failures"
    assert "completions by kind: exception" in error.message
    assert "LookupError: no such answer" in error.message
    assert any(m.startswith("reward failed for a completion of group") for m in service.messages(job_id))
    assert service.get(f"/v1/fine_tuning/jobs/{job_id}/reward")["failures"]["exception"] >= 4
    assert service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")["states"]["trained"] == 0
    assert service.get("/healthz")


def test_a_job_that_nobody_scores_pauses_or_fails_and_never_succeeds(service: Service, tmp_path: Path) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text("def silent(completion):\n    return None if completion else 0.0\n")
    grader = {"type": "function", "name": "silent", "function": f"{reward}:silent"}
    long = service.submit(grader, n_steps=400, max_steps_without_gradient=3, eval_interval=400, checkpoint_interval=400)
    short = service.submit(grader, n_steps=2, max_steps_without_gradient=3)
    service.wait(long, "paused")
    paused_by = service.get(f"/v1/fine_tuning/jobs/{long}")["paused_by"]
    assert paused_by["code"] == "nothing_learned"
    assert "has a reward" in paused_by["message"]
    assert any(m.startswith("Step 1 changed nothing: none of its 16 completions") for m in service.messages(long))
    service.wait(short, "failed")
    error = service.openai.fine_tuning.jobs.retrieve(short).error
    assert error is not None
    assert error.code == "nothing_scored"
    assert service.openai.fine_tuning.jobs.retrieve(short).fine_tuned_model is None
    service.openai.fine_tuning.jobs.cancel(long)


def test_what_is_wrong_with_a_submission_is_said_at_once(service: Service, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="tiny-adder"):
        service.submit(model="no-such-model")
    with pytest.raises(openai.BadRequestError, match="grpo"):
        service.submit(algorithm="no-such-algorithm")
    reward = tmp_path / "reward.py"
    reward.write_text("def broken(sample, item:\n    return 1.0\n")
    with pytest.raises(openai.BadRequestError, match="line 1"):
        service.submit({"type": "function", "name": "broken", "function": f"{reward}:broken"})
    with pytest.raises(openai.BadRequestError, match="tokens"):
        service.submit(max_tokens=120, max_context=128)
    assert service.get("/readyz")


def test_the_trained_model_loads_in_transformers(service: Service) -> None:
    job_id = service.submit(n_steps=1)
    service.wait(job_id, "succeeded")
    (checkpoint,) = service.openai.fine_tuning.jobs.checkpoints.list(job_id)
    name = checkpoint.fine_tuned_model_checkpoint
    (described,) = [m for m in service.openai.models.list() if m.id == name]
    folder = described.model_dump()["path"]
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 300_000
