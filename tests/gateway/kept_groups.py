"""Groups as a learner keeps them, of texts that a test chooses, in the tokens of the adder example's model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from headrace_core.jobs.rollout_records import RecordedCompletion, Rollout, TokenRole, pack
from headrace_core.types.trajectory import F32, I32, NO_VERSION, U8
from headrace_lab.paths import ADDER

MODEL_FOLDER = ADDER / "model"
TOKENIZER = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
END = "<|end|>"


def completion(text: str, step: int, reward: float | None = 1.0, oldest: int = 0, bound: int = 4) -> RecordedCompletion:
    """Sampled over the last `oldest` versions, the oldest first; what is older than `bound` is masked."""
    ids = TOKENIZER.encode(text).ids
    size = len(ids)
    ages = np.array([oldest - i * (oldest + 1) // max(1, size) for i in range(size)], np.int32)
    trained = (ages <= bound) & (reward is not None)
    rng = np.random.default_rng(len(text))
    weights = np.where(trained, np.exp(rng.normal(0, 0.15, size) * ages), np.nan)
    return RecordedCompletion(
        token_ids=pack(np.array(ids), I32),
        versions=pack(step - 1 - ages, I32),
        logprobs=pack(-rng.exponential(0.7, size), F32),
        importance=pack(weights, F32),
        roles=pack(
            np.where(trained, TokenRole.TRAINED, TokenRole.NO_REWARD if reward is None else TokenRole.TOO_OLD), U8
        ),
        reward=reward,
        trained_reward=reward,
        components={} if reward is None else {"exact": reward, "brief": 0.25},
        advantage=None if reward is None else reward - 0.5,
        finish_reason="stop" if text.endswith(END) else "length",
        greedy=False,
        notes={} if reward is None else {"said": f"<b>{text[:20]}"},
    )


def environment_token(kept: RecordedCompletion) -> RecordedCompletion:
    """The same, with a first token that the policy did not sample."""
    size = len(kept.roles)
    arrays = {
        name: np.frombuffer(getattr(kept, name), kind).copy() for name, kind in (("versions", I32), ("roles", U8))
    }
    arrays["versions"][0], arrays["roles"][0] = NO_VERSION, TokenRole.NOT_SAMPLED
    logprobs = np.full(size, np.nan)
    return RecordedCompletion(
        **{f: getattr(kept, f) for f in kept.__struct_fields__ if f not in ("versions", "roles", "logprobs")},
        versions=pack(arrays["versions"], I32),
        roles=pack(arrays["roles"], U8),
        logprobs=pack(logprobs, F32),
    )


def group(
    step: int, number: int, completions: Sequence[RecordedCompletion], prompt: str = "What is 37 + 56?"
) -> Rollout:
    """A kept group of these."""
    return Rollout(
        group=number,
        step=step,
        row=number % 8,
        attempt=1,
        prompt_ids=pack(np.array(TOKENIZER.encode(prompt).ids), I32),
        completions=list(completions),
        group_size=len(completions),
    )
