"""The objectives, written down a second time: from the formulas alone, one sequence at a time, in plain loops.

Nothing here is shared with the learner but the settings. Full logits of one sequence, no packing, no micro-batches;
the gradient is autograd's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.types.trajectory import Completion, Group, Role


@dataclass
class Token:
    """One that contributes; log-probabilities are of the sampling temperature."""

    place: int
    """Its position in prompt and completion."""
    age: int
    weight: float
    behaviour: float
    before: float
    """By the policy before the step's first update."""
    base: float
    value: float
    penalty: float = 0.0
    advantage: float = 0.0
    target: float = 0.0
    """What the critic should say."""


@dataclass
class Sampled:
    """One completion with a reward."""

    ids: list[int]
    reward: float
    greedy: float
    after: float = 0.0
    """The critic's value after the last token, of a completion that was cut off."""
    tokens: list[Token] = field(default_factory=list)
    charged: list[Token] = field(default_factory=list)
    """Sampled, and in no loss: too old, or of weight 0. Their penalties count."""
    answer: list[Token] = field(default_factory=list)
    """Of the reference answer; their advantage is 1, or what its likelihood says."""


Step = list[list[Sampled]]
"""By group."""
PARTS = {int(Role.COMPLETION): "tokens", int(Role.REFERENCE): "answer"}
"""Where a contributing token of the role goes."""


@dataclass
class Models:
    """As they were before the step. `critic` is a pair of base model and head."""

    policy: Any
    base: Any
    critic: Any = None


def read(groups: Sequence[Group], version: int, s: Hyperparameters, models: Models) -> Step:
    """The step, with advantages."""
    step = [_group(group, version, s, models) for group in groups]
    if s.kl_coefficient and s.kl_in == "reward":
        for token in [*_tokens(step), *(t for group in step for sampled in group for t in sampled.charged)]:
            policy = token.before if s.proximal == "recompute" else token.behaviour
            token.penalty = s.kl_coefficient * _kl(policy - token.base, s)
    ADVANTAGES[s.algorithm](step, s)
    return step


def _group(group: Group, version: int, s: Hyperparameters, models: Models) -> list[Sampled]:
    found = []
    for completion in group.completions:
        if completion.reward is None:
            continue
        prompt = group.prompt_ids.tolist()
        greedy = _reward(group.greedy, prompt, version, s, models)[0]
        reward, answer_advantage = _reward(completion, prompt, version, s, models)
        sampled = Sampled([*prompt, *completion.token_ids.tolist()], reward, greedy)
        with torch.no_grad():
            before = log_softmax(models.policy, sampled, s)
            base = log_softmax(models.base, sampled, s) if s.kl_coefficient else before
            value = values(models.critic, sampled) if models.critic is not None else torch.zeros(len(sampled.ids))
        if completion.finish_reason == "length" and completion.sampled[-1] and s.truncation == "bootstrap":
            sampled.after = value[-1].item()
        for i, role in enumerate(completion.roles.tolist()):
            age, place = version - int(completion.versions[i]), len(prompt) + i
            if role not in PARTS:
                continue
            silent = completion.loss_weights[i] == 0 or age > s.max_staleness
            if silent and role == Role.REFERENCE:
                continue
            at = (place - 1, sampled.ids[place])
            (sampled.charged if silent else getattr(sampled, PARTS[role])).append(
                Token(
                    place=place,
                    age=age,
                    weight=float(completion.loss_weights[i]),
                    behaviour=float(completion.logprobs[i]),
                    before=before[at].item(),
                    base=base[at].item(),
                    value=value[place - 1].item(),
                    advantage=answer_advantage if role == Role.REFERENCE else 0.0,
                )
            )
        found.append(sampled)
    return found


def _reward(
    completion: Completion | None, prompt: list[int], version: int, s: Hyperparameters, models: Models
) -> tuple[float, float]:
    """(reward, what stands in the place of its answer's advantage); the likelihood is the present policy's."""
    if completion is None or completion.reward is None:
        return math.nan, math.nan
    if (how := completion.likelihood) is None:
        return completion.reward, 1.0
    whole = Sampled([*prompt, *completion.token_ids.tolist()], 0.0, 0.0)
    with torch.no_grad():
        every = log_softmax(models.policy, whole, s)
    places = [len(prompt) + i for i, role in enumerate(completion.roles) if role == Role.REFERENCE]
    given = [float(completion.logprobs[place - len(prompt)]) for place in places]
    older = any(completion.versions[place - len(prompt)] < version for place in places)
    now = [every[place - 1, whole.ids[place]].item() for place in places]
    now = now if older and s.proximal == "recompute" and how.affine else given

    def f(logs: list[float]) -> float:
        plain = {
            "product": math.prod(math.exp(log) for log in logs),
            "log": sum(logs),
            "mean": fmean(math.exp(log) for log in logs),
        }[how.kind]
        return max(how.low, min(how.high, plain - how.offset))

    weight = {"product": math.prod(math.exp(log) for log in now), "log": 1.0, "mean": 0.0}[how.kind]
    return completion.reward + how.coefficient * (f(now) - f(given)), how.coefficient * weight


def log_softmax(model: Any, sampled: Sampled, s: Hyperparameters) -> Tensor:
    """[T, V]: row t is of the token at t + 1."""
    return torch.log_softmax(model(input_ids=torch.tensor([sampled.ids])).logits[0] / s.temperature, -1)


def values(critic: Any, sampled: Sampled) -> Tensor:
    """[T]: element t is the value before the token at t + 1."""
    base, head = critic
    found: Tensor = head(base(input_ids=torch.tensor([sampled.ids])).last_hidden_state)[0, :, 0]
    return found


def _tokens(step: Step) -> list[Token]:
    return [token for group in step for sampled in group for token in sampled.tokens]


def _kl(d: Any, s: Hyperparameters) -> Any:
    """Its gradient flows through d alone."""
    exp = torch.exp if isinstance(d, Tensor) else math.exp
    plain = {"k1": lambda: d, "k2": lambda: d * d / 2, "k3": lambda: exp(-d) - 1 + d}[s.kl_estimator[:2]]()
    if not s.kl_estimator.endswith("+"):
        return plain
    return plain.item() - d.item() ** 2 / 2 + d * d / 2


# ── advantages ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _clamp(x: float, s: Hyperparameters) -> float:
    return x if s.advantage_clip is None else max(-s.advantage_clip, min(s.advantage_clip, x))


def _compared(
    step: Step,
    s: Hyperparameters,
    of_rewards: Callable[[list[float], int], float],
    of_penalties: Callable[[list[float], int], float],
) -> None:
    for group in step:
        rewards = [sampled.reward for sampled in group]
        penalties = [sum(token.penalty for token in [*sampled.tokens, *sampled.charged]) for sampled in group]
        for i, sampled in enumerate(group):
            for token in sampled.tokens:
                token.advantage = _clamp(of_rewards(rewards, i), s) - of_penalties(penalties, i)


def _standard(values: list[float], i: int) -> float:
    return (values[i] - fmean(values)) / (pstdev(values) + 1e-6)


def _to_mean(values: list[float], i: int) -> float:
    return values[i] - fmean(values)


def _to_others(values: list[float], i: int) -> float:
    return values[i] - fmean(values[:i] + values[i + 1 :])


def _grpo(step: Step, s: Hyperparameters) -> None:
    _compared(step, s, _standard, _to_mean)


def _dr_grpo(step: Step, s: Hyperparameters) -> None:
    _compared(step, s, _to_mean, _to_mean)


def _rloo(step: Step, s: Hyperparameters) -> None:
    _compared(step, s, _to_others, _to_others)


def _penalty_to_go(sampled: Sampled, t: int, s: Hyperparameters) -> float:
    """What is charged between two tokens that contribute is discounted as the first of them."""
    places = [*(token.place for token in sampled.tokens[t:]), len(sampled.ids)]
    total = 0.0
    for k, token in enumerate(sampled.tokens[t:]):
        between = [other.penalty for other in sampled.charged if places[k] < other.place < places[k + 1]]
        total += s.gamma**k * (token.penalty + sum(between))
    return total


def _remax(step: Step, s: Hyperparameters) -> None:
    for sampled in (sampled for group in step for sampled in group):
        for t, token in enumerate(sampled.tokens):
            token.advantage = _clamp(sampled.reward - sampled.greedy, s) - _penalty_to_go(sampled, t, s)


def _over_the_batch(step: Step, s: Hyperparameters) -> None:
    """Advantages so far, of rewards alone, are normalised; then the penalties to go, less their mean, are charged."""
    found = [token.advantage for token in _tokens(step)]
    charges = [_penalty_to_go(sampled, t, s) for group in step for sampled in group for t in range(len(sampled.tokens))]
    for i, token in enumerate(_tokens(step)):
        token.advantage = _clamp(_standard(found, i), s) - _to_mean(charges, i)


def _reinforce_pp(step: Step, s: Hyperparameters) -> None:
    for sampled in (sampled for group in step for sampled in group):
        last = len(sampled.tokens) - 1
        for t, token in enumerate(sampled.tokens):
            token.advantage = s.gamma ** (last - t) * sampled.reward
    _over_the_batch(step, s)


def _ppo(step: Step, s: Hyperparameters) -> None:
    for sampled in (sampled for group in step for sampled in group):
        last = len(sampled.tokens) - 1
        v = [*(token.value for token in sampled.tokens), sampled.after]
        delta = [(sampled.reward if t == last else 0.0) + s.gamma * v[t + 1] - v[t] for t in range(last + 1)]
        for t, token in enumerate(sampled.tokens):
            token.advantage = sum((s.gamma * s.gae_lambda) ** k * d for k, d in enumerate(delta[t:]))
            token.target = token.advantage + token.value
    _over_the_batch(step, s)


ADVANTAGES: dict[str, Callable[[Step, Hyperparameters], None]] = {
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
    "rloo": _rloo,
    "reinforce_pp": _reinforce_pp,
    "remax": _remax,
    "ppo": _ppo,
    "dapo": _grpo,
    "gspo": _grpo,
    "cispo": _grpo,
    "m2po": _grpo,
}


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def policy_loss(step: Step, part: slice, s: Hyperparameters, policy: Any) -> Tensor:
    """Of one minibatch, the groups `part`, by the policy as it is now."""
    kept = _below_second_moment(step, s)
    per_sequence: list[list[Tensor]] = []
    for sampled in (sampled for group in step[part] for sampled in group):
        if not sampled.tokens and not sampled.answer:
            per_sequence.append([])
            continue
        every = log_softmax(policy, sampled, s)
        logs = [
            _proximal(token, every[token.place - 1, sampled.ids[token.place]].item(), s) - token.behaviour
            for token in sampled.tokens
        ]
        of_answer = 0.0  # given, not sampled: only what the policy chose before it can be stale
        if s.importance_level == "sequence":
            of_answer = sum(logs)
            logs = [of_answer] * len(logs)
        if s.importance_level == "geometric" and logs:
            of_answer = fmean(logs)
            logs = [of_answer] * len(logs)
        weights = _importance(sampled.tokens, logs, s, kept)
        of_answers = _importance(sampled.answer, [of_answer] * len(sampled.answer), s, kept)
        per_sequence.append(
            _losses(sampled.tokens, sampled, every, s, weights, s.kl_coefficient if s.kl_in == "loss" else 0.0)
            + _losses(sampled.answer, sampled, every, s, of_answers, 0.0)
        )
    return _mean(per_sequence, s)


def _losses(
    tokens: list[Token], sampled: Sampled, every: Tensor, s: Hyperparameters, weights: list[float], kl: float
) -> list[Tensor]:
    """Of the completion's tokens or of its answer's: one sequence."""
    current = [every[token.place - 1, sampled.ids[token.place]] for token in tokens]
    proximal = [_proximal(token, now.item(), s) for token, now in zip(tokens, current, strict=True)]
    losses = []
    for i, token in enumerate(tokens):
        ratio = torch.exp(current[i] - proximal[i])
        if s.algorithm == "gspo":
            logs = [c - p for c, p in zip(current, proximal, strict=True)]
            ratio = torch.exp(sum(logs, start=torch.zeros_like(logs[0])) / len(logs))
        loss = weights[i] * _loss(ratio, token.advantage, s)
        if s.algorithm == "cispo":
            clipped = min(max(weights[i] * ratio.item(), 1 - s.clip_low), 1 + s.clip_high)
            loss = -(clipped if weights[i] else 0.0) * token.advantage * current[i]
        if kl:
            loss = loss + weights[i] * kl * _kl(current[i] - token.base, s)
        losses.append(token.weight * loss)
    return losses


def value_loss(step: Step, part: slice, s: Hyperparameters, critic: Any) -> Tensor:
    """Of one minibatch, by the critic as it is now."""
    per_sequence: list[list[Tensor]] = []
    for sampled in (sampled for group in step[part] for sampled in group):
        now = values(critic, sampled) if sampled.tokens else torch.zeros(0)
        losses = []
        for token in sampled.tokens:
            value = now[token.place - 1]
            near = token.value + torch.clamp(value - token.value, -s.value_clip, s.value_clip)
            losses.append(token.weight * torch.max((value - token.target) ** 2, (near - token.target) ** 2) / 2)
        per_sequence.append([*losses, *(torch.zeros(()) for _ in sampled.answer)])
    return _mean(per_sequence, s)


def _proximal(token: Token, now: float, s: Hyperparameters) -> float:
    if s.proximal == "interpolate":
        return token.behaviour + token.age / (token.age + 1) * (now - token.behaviour)
    return token.before if s.proximal == "recompute" else token.behaviour


def _importance(tokens: list[Token], logs: list[float], s: Hyperparameters, kept: set[int]) -> list[float]:
    found = []
    for log, token in zip(logs, tokens, strict=True):
        w = math.exp(log)
        found.append(
            {
                "truncate": min(w, s.importance_cap),
                "mask": w if 1 / s.importance_cap <= w <= s.importance_cap else 0.0,
                "second_moment": w if id(token) in kept else 0.0,
                "none": 1.0,
            }[s.importance]
        )
    return found


def _below_second_moment(step: Step, s: Hyperparameters) -> set[int]:
    """Of single tokens that a trust region acts on: the furthest off goes, one by one, until the mean square of the
    rest is within the bound. All others stay, and so do answers, which have no ratio."""
    every = _tokens(step)
    kept = {id(token) for token in every} | {id(t) for group in step for sampled in group for t in sampled.answer}
    logs = {id(token): token.before - token.behaviour for token in every}
    left = {id(token): logs[id(token)] ** 2 for token in every if logs[id(token)] * token.advantage > 0}
    while left and fmean(left.values()) > s.second_moment:
        furthest = max(left, key=lambda token: left[token])
        del left[furthest]
        kept.remove(furthest)
    return kept


def _loss(ratio: Tensor, advantage: float, s: Hyperparameters) -> Tensor:
    near = torch.clamp(ratio, 1 - s.clip_low, 1 + s.clip_high)
    if s.algorithm in ("rloo", "remax", "m2po"):
        return -ratio * advantage
    return -torch.min(ratio * advantage, near * advantage)


def _mean(per_sequence: list[list[Tensor]], s: Hyperparameters) -> Tensor:
    sums = [torch.stack(losses).sum() for losses in per_sequence if losses]
    if s.loss_mean == "token":
        return torch.stack(sums).sum() / sum(len(losses) for losses in per_sequence)
    if s.loss_mean == "constant":
        return torch.stack(sums).sum() / (len(per_sequence) * s.max_tokens)
    return torch.stack([torch.stack(losses).mean() for losses in per_sequence if losses]).mean()
