"""The parts of the VeriFree evidence: its exact figures by hand, its engine in turns, its arms' groups and figures."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evidence.verifree import exact
from evidence.verifree import run as verifree
from evidence.verifree.training import SETTINGS, Run
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Group, Role
from headrace_lab.paths import ROOT
from headrace_lab.training.step_engine import TurnEngine
from headrace_learner.algorithms.presets import algorithm
from headrace_learner.models.policy import Policy
from headrace_learner.training.trainer import Trainer
from headrace_rollout.engines.engine import Sampled, SamplingConfig, Scored

MODEL = ROOT / "examples" / "adder" / "model"


# ── exact ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def enumerated() -> tuple[Any, exact.Enumerated]:
    model = exact.tiny_model(3)
    return model, exact.enumerate_all(model)


@pytest.fixture(scope="module")
def scores(enumerated: tuple[Any, exact.Enumerated]) -> tuple[Any, Any]:
    return exact.scores(*enumerated)


def test_all_that_a_model_can_write_is_enumerated(enumerated: tuple[Any, exact.Enumerated]) -> None:
    model, table = enumerated
    assert np.exp(table.reasoning.sum(-1)).sum() == pytest.approx(1)
    assert np.exp(table.answer.sum(-1)).sum((2, 3)) == pytest.approx(np.ones((16, 16)))
    ids = torch.tensor([[*exact.PROMPT, 5, 11, 2, 13]])
    with torch.no_grad():
        direct = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)[[2, 3, 4, 5], [5, 11, 2, 13]]
    assert [*table.reasoning[5, 11], *table.answer[5, 11, 2, 13]] == pytest.approx(direct.tolist(), abs=1e-5)
    assert table.likelihoods[5 * 16 + 11] == pytest.approx(np.exp(table.answer[5, 11][table.reference].sum()))
    assert table.chances @ table.likelihoods > 1 / 256  # no answer is likelier


def test_the_variance_ratio_of_one_sample_by_hand() -> None:
    """Scores 1 and -3 with chances 3/4 and 1/4, likelihoods 1/2 and 1/4: both means are 3/16."""
    chances, p, score = np.array([0.75, 0.25]), np.array([0.5, 0.25]), np.array([[1.0], [-3.0]])
    verifree = 0.75 * 0.25 + 0.25 * 0.0625 * 9 - (3 / 16) ** 2
    verifier = 0.75 * 0.5 + 0.25 * 0.25 * 9 - (3 / 16) ** 2
    assert exact._exact_ratio(chances, p, score) == pytest.approx(verifree / verifier)


def test_the_exact_gradient_is_that_of_the_objective(
    enumerated: tuple[Any, exact.Enumerated], scores: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along itself, by finite differences. The scores, seconds of work, are those that the next test has too."""
    model, table = enumerated
    monkeypatch.setattr(exact, "scores", lambda *_: scores)
    found, _ = exact.one_sample(model, table)
    step, direction = 1e-3, torch.from_numpy(found / np.linalg.norm(found)).float()

    def objective(by: float) -> float:
        offset, parameters = 0, list(model.parameters())
        for parameter in parameters:
            part = direction[offset : offset + parameter.numel()].view_as(parameter)
            parameter.data.add_(by * part)
            offset += parameter.numel()
        table_now = exact.enumerate_all(model)
        p = np.exp(table_now.answer[:, :, *table.reference].sum(-1)).ravel()
        return float(table_now.chances @ p)

    up, down = objective(step), objective(-2 * step)
    objective(step)
    assert (up - down) / (2 * step) == pytest.approx(np.linalg.norm(found), rel=1e-2)


def test_a_batch_that_teaches_nothing_has_no_gradient(enumerated: tuple[Any, exact.Enumerated], tmp_path: Path) -> None:
    """Also after one that does: the trainer leaves what it computed last."""
    model, table = enumerated
    model.save_pretrained(tmp_path)
    trainer = Trainer(Policy(tmp_path), algorithm("rloo"), Hyperparameters.model_validate(exact.ESTIMATOR))
    group = exact.drawn_group(table, np.random.default_rng(0))
    assert np.abs(exact.gradient(trainer, [group["verifree"]])).max() > 0
    wrong = replace(group["verifier"], completions=tuple(replace(c, reward=0.0) for c in group["verifier"].completions))
    assert not exact.gradient(trainer, [wrong]).any()


def test_the_trainers_gradient_of_a_group_is_the_written_one(
    enumerated: tuple[Any, exact.Enumerated], scores: tuple[Any, Any], tmp_path: Path
) -> None:
    model, table = enumerated
    model.save_pretrained(tmp_path)
    settings = Hyperparameters.model_validate(exact.ESTIMATOR)
    trainer = Trainer(Policy(tmp_path), algorithm("rloo"), settings)
    group = exact.drawn_group(table, np.random.default_rng(0))
    of_z, of_y = scores
    reasonings = [int(c.token_ids[0]) * 16 + int(c.token_ids[1]) for c in group["verifree"].completions]
    for arm in exact.ARMS:
        assert [c.token_ids[:2].tolist() for c in group[arm].completions] == [[*divmod(z, 16)] for z in reasonings]
    r = table.likelihoods[reasonings]
    advantages = (r - r.mean()) * 8 / 7
    reasoning, answer = advantages @ of_z[reasonings] / 8, r @ of_y[reasonings] / 8
    for arm, expected in (("verifree", reasoning + answer), ("no_answer_term", reasoning)):
        found = exact.gradient(trainer, [group[arm]])
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


# ── to target ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_engine_in_turns_repeats_itself_and_scores_what_it_samples() -> None:
    prompt = np.arange(5, 12, dtype=np.int32)

    def run() -> tuple[list[Sampled], list[Scored]]:
        engine = TurnEngine(MODEL, Hyperparameters.model_validate(SETTINGS))

        async def one() -> tuple[Sampled, Scored]:
            sampled = await engine.generate(prompt, SamplingConfig(10))
            return sampled, await engine.score(np.concatenate([prompt, sampled.token_ids]), len(prompt))

        async def all_of_them() -> list[tuple[Sampled, Scored]]:
            return await asyncio.gather(*(one() for _ in range(5)))

        pairs = engine.drive(all_of_them())
        return [s for s, _ in pairs], [s for _, s in pairs]

    (sampled, scored), (again, _) = run(), run()
    assert len({tuple(s.token_ids.tolist()) for s in sampled}) > 1
    for mine, other, score in zip(sampled, again, scored, strict=True):
        assert mine.token_ids.tolist() == other.token_ids.tolist()
        assert score.logprobs.tolist() == pytest.approx(mine.logprobs.tolist(), abs=1e-4)


@pytest.fixture(scope="module")
def groups() -> dict[str, list[Group]]:
    return {arm: Run(arm, 0, MODEL).groups(0, 16) for arm in verifree.ARMS}


def test_arms_see_the_same_prompts_and_only_verifree_appends_answers(groups: dict[str, list[Group]]) -> None:
    rows = [group.row for group in groups["verifree"]]
    for made in groups.values():
        assert [group.row for group in made] == rows
    assert not any((c.roles == Role.REFERENCE).any() for g in groups["verifier"] for c in g.completions)
    assert {c.reward for g in groups["verifier"] for c in g.completions} == {0.0, 1.0}
    for completion in (c for g in groups["verifree"] for c in g.completions):
        answer = completion.roles == Role.REFERENCE
        if answer.any():
            assert completion.reward == pytest.approx(np.exp(completion.logprobs[answer].sum()), rel=1e-5)
            assert completion.likelihood is not None
            weight = completion.likelihood.answer_weight(completion.logprobs[answer].tolist())
            assert weight == pytest.approx(completion.reward)
            assert (completion.loss_weights[answer] == 1).all()


def test_without_a_baseline_the_advantage_is_the_likelihood_itself(groups: dict[str, list[Group]]) -> None:
    assert all(g.greedy is not None and g.greedy.reward == 0.0 for g in groups["no_baseline"])
    assert all(g.greedy is None for arm in ("verifree", "verifier") for g in groups[arm])
    ((same, other),) = zip(groups["verifree"][:1], groups["no_baseline"][:1], strict=True)
    assert [c.reward for c in same.completions] == [c.reward for c in other.completions]


def a_result(**changes: Any) -> dict[str, Any]:
    one = {"objective": 0.2, "p2_over_p": 0.4, "variance_ratio": 0.3, "variance_ratio_of_reasoning": 0.42}
    return {
        "exact": {
            "one_sample": [one, one | {"variance_ratio_of_reasoning": 0.38}],
            "difference_to_exact_z": {"verifree": -1.0, "verifier": 0.5, "no_answer_term": 30.0},
            "leave_one_out": {"variance_ratio": 0.5, "variance_ratio_90": (0.4, 0.6)},
        },
        "baseline": [{"ratio_90": (0.9, 1.1)}, {"ratio_90": (1.4, 1.8)}],
        "steps_to_target": {"verifree": [10, 12], "verifier": [20, 16], "no_baseline": [30, 40]},
    } | changes


def test_thresholds_are_met_one_by_one() -> None:
    seen = verifree.figures(a_result())
    assert [met for *_, met in seen] == [True] * 8
    assert [value for _, _, value, _ in seen] == ["-1.0", "30", "0.300", "1.000", "0.600", "0.61", "3.18", "1.40"]
    slower = verifree.figures(a_result(steps_to_target={"verifree": [20], "verifier": [18], "no_baseline": [20]}))
    assert [met for *_, met in slower] == [True] * 5 + [False] * 2 + [True]


def test_a_run_that_never_reaches_the_target_counts_as_all_its_steps() -> None:
    runs = [{"arm": arm, "reached": reached} for arm in verifree.ARMS for reached in (8, None)]
    assert verifree.steps_to_target(runs) == {arm: [8, verifree.STEPS] for arm in verifree.ARMS}
