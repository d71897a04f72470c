"""Reward functions as users of other libraries write them: each in the style of its library's documentation, and with
what that library passes. `test_foreign_functions` runs them unchanged; they are not imported by a test."""

# mypy: disable-error-code="no-untyped-def"
# Users write few types.

import asyncio
import re

# ── TRL: the whole batch, every column of the dataset, and the trainer's own names ───────────────────────────────────


def trl_text(completions, answer, **kwargs):
    """Plain completions; the columns come as lists."""
    return [1.0 if completion.strip() == truth else 0.0 for completion, truth in zip(completions, answer, strict=True)]


def trl_conversational(prompts, completions, answer, log_extra=None, log_metric=None, **kwargs):
    """Messages; logs as TRL's own rewards do; no opinion where the column cannot be read."""
    said = [completion[0]["content"] for completion in completions]
    rewards = [None if not truth else float(text == truth) for text, truth in zip(said, answer, strict=True)]
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    if log_extra:
        log_extra("said", said)
    if log_metric:
        log_metric("share", sum(reward or 0.0 for reward in rewards) / len(rewards))
    return rewards


def trl_by_tokens(completions, completion_ids, **kwargs):
    """Of several tasks, this one rewards short answers of one; the others are not applicable."""
    rows = zip(completion_ids, kwargs["task"], strict=True)
    return [None if task != "short" else 1.0 / len(ids) for ids, task in rows]


async def trl_async(prompts, completions, answer, **kwargs):
    """TRL awaits coroutine functions."""
    kwargs["log_metric"]("asked", len(prompts))
    await asyncio.sleep(0)
    return [float(truth in completion) for completion, truth in zip(completions, answer, strict=True)]


class _Format:
    """Rewards with settings are objects in TRL."""

    def __init__(self, pattern):
        self.pattern = re.compile(pattern)

    def __call__(self, completions, **kwargs):
        return [0.5 * bool(self.pattern.fullmatch(completion)) for completion in completions]


trl_object = _Format(r"\d+")

# ── verl: one sample by four names; batches in the plural ────────────────────────────────────────────────────────────


def verl_score(data_source, solution_str, ground_truth, extra_info):
    """The custom reward function of verl; `extra_info` is always passed."""
    if data_source != "toy/sums":
        raise NotImplementedError(data_source)
    predicted = solution_str.split()[-1]
    return {
        "score": float(predicted == ground_truth),
        "acc": predicted == ground_truth,
        "pred": predicted,
        **extra_info,
    }


async def verl_async(
    data_source, solution_str, ground_truth, extra_info=None, reward_router_address=None, reward_model_tokenizer=None
):
    """With the names of verl's reward loop, which are passed only where a reward model is served."""
    await asyncio.sleep(0)
    return 1.0 if reward_router_address is None and solution_str.endswith(ground_truth) else 0.0


def _strict(solution_str, ground_truth, method="flexible"):
    return float(solution_str == ground_truth if method == "strict" else ground_truth in solution_str)


def verl_passes_on(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """What verl puts into kwargs are configured settings, so they may be handed to a function that takes few."""
    return _strict(solution_str, ground_truth, **kwargs)


def verl_batch(data_sources, solution_strs, ground_truths, extra_infos, **kwargs):
    """For verl's batch reward manager."""
    assert len(data_sources) == len(extra_infos) == len(solution_strs)
    return [float(text == truth) for text, truth in zip(solution_strs, ground_truths, strict=True)]


# ── OpenRLHF: queries hold prompt and response ───────────────────────────────────────────────────────────────────────


def openrlhf_tensors(queries, prompts, labels, **kwargs):
    """Columns of tensors: what is learnt from, what filters, and logs."""
    import torch

    right = [float(query[len(p) :].strip() == label) for query, p, label in zip(queries, prompts, labels, strict=True)]
    rewards = torch.tensor(right) - 0.5
    return {"rewards": rewards, "scores": torch.tensor(right), "extra_logs": {"share": torch.tensor(right).mean()}}


def openrlhf_list(queries, prompts, labels):
    """One reward after the other."""
    return [float(label in query[len(prompt) :]) for query, prompt, label in zip(queries, prompts, labels, strict=True)]


# ── verifiers: any of its names; plural ones mean the group ──────────────────────────────────────────────────────────


def verifiers_exact(completion, answer):
    """Messages in, a number out."""
    return 1.0 if completion[-1]["content"] == answer else 0.0


def verifiers_parser(parser, completion, answer, **kwargs):
    """With the rubric's parser and everything else in kwargs."""
    assert {"prompt", "state", "info", "task"} <= kwargs.keys()
    return float(parser.parse_answer(completion) == answer)


async def verifiers_async(prompt, completion, answer, state, info, task):
    """All names of a single rollout."""
    await asyncio.sleep(0)
    assert state["prompt"] == prompt
    assert state["answer"] == answer
    return 0.25 * len(prompt) if task == "short" and info == {} else 0.0


async def verifiers_group(completions, answers, states) -> list[float]:
    """Of the group: how rare each completion is among those that are right."""
    said = [completion[-1]["content"] for completion in completions]
    assert [state["completion"][-1]["content"] for state in states] == said
    return [float(text == answer) / said.count(text) for text, answer in zip(said, answers, strict=True)]


# ── OpenAI: a sample and the row ─────────────────────────────────────────────────────────────────────────────────────


def grade(sample: dict, item: dict) -> float:
    """The python grader."""
    assert sample["choices"][0]["message"]["content"] == sample["output_text"]
    return 1.0 if str(sample["output_json"]) == item["answer"] else 0.0
