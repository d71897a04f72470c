"""Reference answers end to end on the shipped adder: what is appended, by which version, and what a forward says of it.

The adder's policy writes `<answer> … </answer>` itself, so real completions are cut and go on with the reference.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidData, InvalidRequest
from headrace_core.ledger.records import Lease
from headrace_core.types.trajectory import Completion, Group, Role, decode, encode
from headrace_lab.paths import ADDER
from headrace_rewards.registry import build, validate
from headrace_rollout.completion_sampler import CompletionSampler
from headrace_rollout.engines.engine import EngineConfig, SamplingConfig
from headrace_rollout.engines.transformers.engine import TransformersEngine
from headrace_rollout.group_builder import GroupBuilder
from headrace_rollout.monitored_reward import MonitoredReward
from headrace_rollout.prompts import Prompt, Tokenizer, read_prompts

from .tiny_model import of_tokens

SETTINGS = Hyperparameters(
    engine="transformers", n_steps=1, batch_size=2, group_size=6, max_tokens=60, max_context=128, temperature=0.8
)
TOLERANCE = 1e-4
RIGHT = {
    "type": "string_check",
    "name": "right",
    "input": "{{ sample.output_text }}",
    "reference": "> {{ item.answer }} <",
    "operation": "like",
}


SAYS_NOTHING = {"type": "string_check", "name": "brief", "input": "a", "reference": "b", "operation": "eq"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(ADDER / "model")


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[Prompt]:
    return read_prompts(ADDER / "validation.jsonl", tokenizer, 64)[:4]


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(ADDER / "model", dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture
async def engine() -> AsyncIterator[TransformersEngine]:
    config = EngineConfig(ADDER / "model", 3, max_model_len=128, max_running=16, seed=5, distributions=True)
    made = TransformersEngine(config)
    await made.start()
    yield made
    await made.close()


def grader(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "name": kind, **fields}


@torch.no_grad()
def forward(model: Any, tokens: npt.NDArray[np.int32], start: int) -> npt.NDArray[np.float32]:
    """Log-probabilities of tokens[start:] at the job's temperature, by a plain forward pass."""
    logits = model(torch.from_numpy(tokens).long()[None]).logits[0] / SETTINGS.temperature
    return of_tokens(logits.log_softmax(-1), tokens, start)


async def make_group(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt], described: dict[str, Any], **changes: Any
) -> tuple[Group, GroupBuilder]:
    """The first group, over the wire and back."""
    settings = SETTINGS.model_copy(update=changes)
    spec = validate(described)
    watched = MonitoredReward(build(described), spec, "rollout-0", settings)
    maker = GroupBuilder(engine, tokenizer, watched, prompts, settings, lambda: None, spec)
    return decode(encode(await maker.make(Lease(0, "token", 1, 3), settings.group_size))), maker


def parts(completion: Completion) -> tuple[int, int]:
    """(sampled tokens, reference tokens); the reference follows the sampled ones."""
    reference = int((completion.roles == Role.REFERENCE).sum())
    sampled = len(completion) - reference
    assert (completion.roles[:sampled] == Role.COMPLETION).all()
    return sampled, reference


@pytest.mark.parametrize("kind", ["verifree", "jepo", "latro"])
async def test_reference_tokens_carry_the_log_probabilities_of_a_forward_and_the_weight_of_their_reward(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt], model: Any, kind: str
) -> None:
    group, maker = await make_group(engine, tokenizer, prompts, grader(kind))
    answer = prompts[group.row].data.item["answer"]
    for completion in group.completions:
        sampled, _ = parts(completion)
        tokens = np.concatenate([group.prompt_ids, completion.token_ids])
        expected = forward(model, tokens, len(group.prompt_ids))
        np.testing.assert_allclose(completion.logprobs, expected, atol=TOLERANCE)
        assert tokenizer.exact_text(completion.token_ids[sampled:]) == f"> {answer} </answer>"
        assert tokenizer.exact_text(completion.token_ids[:sampled]).endswith("<answer")
        assert (completion.versions == 3).all()
        assert completion.finish_reason == "stop"
        likelihood = float(np.exp(expected[sampled:].sum()))
        assert completion.reward == pytest.approx(likelihood if kind == "verifree" else np.log(likelihood), rel=1e-3)
        weight = likelihood if kind == "verifree" else 1.0
        assert completion.likelihood is not None
        assert completion.likelihood.answer_weight(expected[sampled:].tolist()) == pytest.approx(weight, rel=1e-3)
        assert (completion.loss_weights == 1).all()
        assert completion.components == {"answer_opened": 1.0, "unstable_boundary": 0.0}
    assert len({c.reward for c in group.completions}) > 1
    assert maker.unstable_boundaries == 0
    assert group.sampled_tokens == sum(parts(c)[0] for c in group.completions)


async def test_an_answer_weighs_by_its_part_in_the_reward(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    """In a formula, its share; what is not trained (rlpr) goes along all the same, for the reward to be computed anew;
    what enters no reward does not."""
    held = {"likely": grader("verifree"), "brief": SAYS_NOTHING}
    for formula, coefficient in (("0.7 * likely + 0.3 * brief", 0.7), ("brief", None)):
        described = grader("multi", graders=held, calculate_output=formula)
        group, _ = await make_group(engine, tokenizer, prompts, described)
        for completion in group.completions:
            _, reference = parts(completion)
            assert (reference > 0) == (completion.likelihood is not None) == (coefficient is not None)
            if completion.likelihood is not None:
                assert completion.likelihood.coefficient == coefficient
    group, _ = await make_group(engine, tokenizer, prompts, grader("rlpr", spread_share=0))
    for completion in group.completions:
        sampled, reference = parts(completion)
        assert completion.loss_weights.tolist() == [1] * sampled + [0] * reference
        assert completion.likelihood is not None
        assert completion.likelihood.value(completion.logprobs[sampled:].tolist()) == pytest.approx(completion.reward)


async def test_the_reasoning_is_what_was_sampled(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    """A seeded request samples alike, with and without the cut."""
    measurer = CompletionSampler(engine, tokenizer, validate(grader("verifree")), SETTINGS, prompts)
    configs = [SamplingConfig(60, 0.8, seed=seed) for seed in range(4)]
    for config, traced in zip(configs, await measurer.complete(prompts[1], configs), strict=True):
        whole = await engine.generate(prompts[1].token_ids, config)
        size = len(traced.sampled.token_ids)
        assert 0 < size < len(whole.token_ids)
        np.testing.assert_array_equal(traced.sampled.token_ids, whole.token_ids[:size])
        np.testing.assert_allclose(traced.sampled.logprobs, whole.logprobs[:size], atol=TOLERANCE)
        assert traced.measured is not None
        assert traced.measured.logprobs == tuple(traced.sampled.logprobs.tolist())


async def test_without_an_opened_answer_nothing_is_appended_and_the_reward_is_the_least(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    for kind, least in (("verifree", 0.0), ("jepo", -20.0), ("rlpr", 0.0)):
        group, _ = await make_group(engine, tokenizer, prompts, grader(kind), max_tokens=3)
        for completion in group.completions:
            assert parts(completion) == (3, 0)
            assert completion.finish_reason == "length"
            assert completion.reward == least
            assert completion.components["answer_opened"] == 0.0


async def test_rlpr_trains_no_answer_and_compares_with_the_answer_alone(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt], model: Any
) -> None:
    group, _ = await make_group(engine, tokenizer, prompts, grader("rlpr"))
    suffix = tokenizer.encode(f"> {prompts[group.row].data.item['answer']} </answer>")
    bare = np.concatenate([group.prompt_ids, tokenizer.encode("<answer"), suffix])
    alone = np.exp(forward(model, bare, len(bare) - len(suffix))).mean()
    for completion in group.completions:
        full = np.concatenate([group.prompt_ids, completion.token_ids])
        assert full[-len(suffix) :].tolist() == suffix.tolist()
        assert not completion.loss_weights[-len(suffix) :].any()
        reasoned = np.exp(forward(model, full, len(full) - len(suffix))).mean()
        assert completion.components["alone"] == pytest.approx(alone, rel=1e-3)
        assert completion.reward == pytest.approx(np.clip(reasoned - alone, 0, 1), abs=1e-4)


async def test_an_evaluation_with_a_grader_of_its_own_sees_the_completion_whole(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    greedy = SamplingConfig(60, temperature=0.0)
    for described, whole in ((grader("verifree", evaluation=RIGHT), True), (grader("verifree"), False)):
        spec = validate(described)
        measurer = CompletionSampler(engine, tokenizer, spec, SETTINGS, prompts, evaluating=True)
        (traced,) = await measurer.complete(prompts[0], [greedy])
        assert tokenizer.text(traced.sampled.token_ids).endswith("</answer>") == whole
        assert (traced.measured is None) == whole


@pytest.mark.parametrize("kind", ["self_certainty", "entropy"])
async def test_distributions_are_measured_where_a_grader_asks(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt], model: Any, kind: str
) -> None:
    group, _ = await make_group(engine, tokenizer, prompts, grader(kind))
    for completion in group.completions:
        tokens = np.concatenate([group.prompt_ids, completion.token_ids])
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens).long()[None]).logits[0, len(group.prompt_ids) - 1 : -1]
        by = (logits / SETTINGS.temperature).double().log_softmax(-1)
        uniform = -np.log(by.shape[-1])
        found = uniform - by.mean(-1) if kind == "self_certainty" else (by.exp() * by).sum(-1)
        assert completion.reward == pytest.approx(found.mean().item(), rel=1e-3)


async def test_what_cannot_be_measured_is_said_before_the_first_group(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    bad = validate(grader("verifree", reference="> {{ item.solution }} </answer>"))
    with pytest.raises(InvalidData, match=r"line 1: there is no reference answer: there is no 'item\.solution'"):
        CompletionSampler(engine, tokenizer, bad, SETTINGS, prompts)
    two = {
        "type": "multi",
        "name": "two",
        "graders": {"a": grader("verifree"), "b": grader("jepo")},
        "calculate_output": "a + b",
    }
    with pytest.raises(InvalidRequest, match="'verifree', 'jepo'"):
        CompletionSampler(engine, tokenizer, validate(two), SETTINGS, prompts)


async def test_a_reference_answer_that_does_not_fit_is_refused_and_a_tight_context_shortens_the_reasoning(
    engine: TransformersEngine, tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    spec, prompt = validate(grader("verifree")), prompts[0]
    needed = len(prompt.token_ids) + len(tokenizer.encode(f"<answer> {prompt.data.item['answer']} </answer>"))
    tight = SETTINGS.model_copy(update={"max_context": needed + 2})
    measurer = CompletionSampler(engine, tokenizer, spec, tight, [prompt])
    (traced,) = await measurer.complete(prompt, [SamplingConfig(60)])
    assert len(traced.sampled.token_ids) <= 2
    with pytest.raises(InvalidData, match=r"line 1: .* raise max_context"):
        CompletionSampler(engine, tokenizer, spec, SETTINGS.model_copy(update={"max_context": needed}), [prompt])
