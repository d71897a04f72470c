"""Turns a job's measurements into named scalars, for TensorBoard and Weights & Biases.

`SERIES` is the complete list, from which docs/exporters.md is generated. The step of a scalar is its policy version. A
figure that does not exist, such as the mean of nothing, has no scalar, since it would be read as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace_core.jobs.history import Kind

Data = Mapping[str, Any]
Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """One series, or one per worker or key: then `name` contains `{worker}` or `{key}`. `read` returns the figures of
    an entry by key."""

    name: str
    kind: Kind
    meaning: str
    read: Callable[[Data], Figures]


@dataclass(frozen=True, slots=True)
class Point:
    """The scalars of one entry, by name of series."""

    step: int
    """Policy version."""
    time: float
    """Unix seconds."""
    values: dict[str, float]


def _one(field: str) -> Callable[[Data], Figures]:
    return lambda data: {"": data[field]}


def _each(field: str) -> Callable[[Data], Figures]:
    return lambda data: data[field]


def _ages(data: Data) -> Mapping[int, float]:
    """Tokens that contributed, by age."""
    return {int(age): m["tokens"] - m["masked"] for age, m in data["ages"].items() if m["tokens"] > m["masked"]}


def _mean_age(data: Data) -> Figures:
    ages = _ages(data)
    return {"": sum(a * n for a, n in ages.items()) / sum(ages.values()) if ages else None}


def _oldest(data: Data) -> Figures:
    return {"": max(_ages(data), default=None)}


def _of_age(field: str) -> Callable[[Data], Figures]:
    return lambda data: {age: figures[field] for age, figures in data["ages"].items()}


def _busy_share(data: Data) -> Figures:
    spent = data["busy"] + sum(data["waiting"].values())
    return {"": data["busy"] / spent if spent else None}


SERIES: tuple[Series, ...] = (
    Series("reward/mean", "step", "mean reward of the step's completions", _one("reward_mean")),
    Series("reward/std", "step", "its standard deviation", _one("reward_std")),
    Series("reward/component/{key}", "step", "mean of each component", _each("components")),
    Series("reward/zero_variance_share", "step", "groups whose rewards are all equal", _one("zero_variance_share")),
    Series("train/loss", "step", "mean over the contributing tokens", _one("loss")),
    Series("train/grad_norm", "step", "before clipping", _one("grad_norm")),
    Series("train/learning_rate", "step", "of the step", _one("learning_rate")),
    Series("train/entropy", "step", "estimated, of a token", _one("entropy")),
    Series("train/tokens", "step", "tokens that contributed", _one("tokens")),
    Series("train/completion_length", "step", "mean, in tokens", _one("completion_length")),
    Series("train/truncated_share", "step", "completions that max_tokens cut off", _one("truncated_share")),
    Series("train/extra/{key}", "step", "what the algorithm measures beside", _each("extra")),
    Series("staleness/age_mean", "step", "mean age of the tokens that contributed", _mean_age),
    Series("staleness/age_max", "step", "age of the oldest of them", _oldest),
    Series("staleness/masked_tokens", "step", "tokens left out for their age", _one("masked_tokens")),
    Series("staleness/effective_sample_size", "step", "1 is on-policy", _one("effective_sample_size")),
    Series("staleness/clip_share", "step", "tokens where the clip was active", _one("clip_share")),
    Series("staleness/behaviour_kl", "step", "mean log π_behaviour − log π_prox", _one("behaviour_kl")),
    Series("staleness/tokens_of_age/{key}", "step", "tokens of each age", _of_age("tokens")),
    Series("time/{key}", "step", "seconds of each stage of the step", _each("seconds")),
    Series("validation/reward_mean", "evaluation", "mean reward on the validation file", _one("reward_mean")),
    Series("validation/component/{key}", "evaluation", "mean of each component", _each("components")),
    Series("validation/completion_length", "evaluation", "mean, in tokens", _one("completion_length")),
    Series("validation/failures/{key}", "evaluation", "samples whose reward failed, by kind", _each("failures")),
    Series("update/{worker}/paused_seconds", "update", "generation stood still", _one("paused_seconds")),
    Series("update/{worker}/staged_seconds", "update", "reading the weights meanwhile", _one("staged_seconds")),
    Series("worker/{worker}/busy_share", "worker", "share of its time, since its start", _busy_share),
    Series("worker/{worker}/tokens", "worker", "sampled, or trained, since its start", _one("tokens")),
    Series("worker/{worker}/running", "worker", "requests in flight", _one("running")),
    Series("worker/{worker}/waiting/{key}", "worker", "seconds, by what was waited for", _each("waiting")),
    Series("worker/{worker}/errors/{key}", "worker", "errors since its start, by kind", _each("errors")),
    Series("scoring/{worker}/completions", "reward", "completions that were to be scored", _one("completions")),
    Series("scoring/{worker}/failures/{key}", "reward", "those whose reward failed, by kind", _each("failures")),
    Series("scoring/{worker}/left_out", "reward", "those that their group went on without", _one("left_out")),
)


def point(kind: str, data: Data, step: int) -> Point:
    """An entry's scalars. `step`: the newest step before it, for entries without a step of their own."""
    values: dict[str, float] = {}
    for series in SERIES:
        if series.kind == kind:
            for key, figure in series.read(data).items():
                if figure is not None:
                    values[series.name.format(worker=data.get("worker"), key=key)] = float(figure)
    return Point(data.get("step", data.get("version", step)), data["time"], values)
