"""Remarks on a job's settings at submission: defaults that were derived from the data, settings without effect."""

from __future__ import annotations

from typing import Literal

from headrace_core.config.hyperparameters import Hyperparameters

from ..models.prompt_tokens import LongestPrompt

Remark = tuple[Literal["info", "warn"], str]
MIN_COMPLETION_TOKENS = 64
"""Smallest default of `max_tokens`; a quarter of the context if that is smaller."""


def min_completion_tokens(context: int) -> int:
    """Tokens that prompts must leave in the context for a completion if the user has not set `max_tokens`."""
    return max(1, min(MIN_COMPLETION_TOKENS, context // 4))


def remarks(
    requested: Hyperparameters, used: Hyperparameters, longest: LongestPrompt, steps: int, *, endless: bool = False
) -> list[Remark]:
    """The remarks. `used`: the settings `requested` with all defaults filled in; `longest`: the longest prompt of all
    files; `endless`: the model names no token that ends a text."""
    notes: list[Remark] = []
    if endless:
        message = (
            "the model names no token that ends a text (eos_token_id of its config.json or generation_config.json, "
            f"eos_token of its tokenizer): every completion has max_tokens = {used.max_tokens} tokens, and is cut off"
        )
        notes.append(("warn", message))
    if used.max_tokens < requested.max_tokens:
        much = 2 * used.max_tokens < requested.max_tokens
        message = (
            f"max_tokens is {used.max_tokens} instead of {requested.max_tokens}: {longest.where}, has a prompt of "
            f"{longest.tokens} of the {used.max_context} tokens of the context; leave long rows out or set max_tokens "
            "to change that"
        )
        notes.append(("warn" if much else "info", message))
    if used.warmup_steps > steps:
        message = (
            f"warmup_steps is {used.warmup_steps}, and the job has {steps} steps: the learning rate ends at "
            f"{steps / used.warmup_steps:.0%} of what is set"
        )
        notes.append(("warn", message))
    if used.critic_warmup_steps >= steps:
        message = (
            f"critic_warmup_steps is {used.critic_warmup_steps}, and the job has {steps} steps: the critic alone is "
            "trained, and the policy stays what it is"
        )
        notes.append(("warn", message))
    return notes
