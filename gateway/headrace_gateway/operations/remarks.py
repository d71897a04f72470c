"""What a user is told of their job's settings at submission: what the data made of them, what they will not do."""

from __future__ import annotations

from typing import Literal

from headrace_core.config.hyperparameters import Hyperparameters

from ..models.prompt_tokens import LongestPrompt

Remark = tuple[Literal["info", "warn"], str]
LEAST_COMPLETION = 64
"""Tokens below which no default `max_tokens` goes; of a context of less than four times as many, a quarter of it."""


def least_completion(context: int) -> int:
    """Tokens that prompts must leave in the context for a completion whose length nobody chose."""
    return max(1, min(LEAST_COMPLETION, context // 4))


def remarks(asked: Hyperparameters, used: Hyperparameters, longest: LongestPrompt, steps: int) -> list[Remark]:
    """(level, one sentence) each. `used` is `asked`, all defaults filled in; `longest` is of all files."""
    found: list[Remark] = []
    if used.max_tokens < asked.max_tokens:
        much = 2 * used.max_tokens < asked.max_tokens
        message = (
            f"max_tokens is {used.max_tokens} instead of {asked.max_tokens}: {longest.where}, has a prompt of "
            f"{longest.tokens} of the {used.max_context} tokens of the context; leave long rows out or set max_tokens "
            "to change that"
        )
        found.append(("warn" if much else "info", message))
    if used.warmup_steps > steps:
        message = (
            f"warmup_steps is {used.warmup_steps}, and the job has {steps} steps: the learning rate ends at "
            f"{steps / used.warmup_steps:.0%} of what is set"
        )
        found.append(("warn", message))
    if used.critic_warmup_steps >= steps:
        message = (
            f"critic_warmup_steps is {used.critic_warmup_steps}, and the job has {steps} steps: the critic alone is "
            "trained, and the policy stays what it is"
        )
        found.append(("warn", message))
    return found
