"""Summarizes a job in a few lines of text: progress, reward, token ages against the bound, ledger, workers.

It is updated with entries of the job's stream (`take`) or with responses of routes, and can be rendered at any moment.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace_core.number_text import decimal

_SPARK = "▁▂▃▄▅▆▇█"
_SPARK_LENGTH = 40
_ENDS = ("dropped_stale", "filtered", "reward_failed", "generation_failed", "cancelled")


class JobSummary:
    """The state of a job, as far as it is known."""

    def __init__(self) -> None:
        self.job: dict[str, Any] = {}
        self.ledger: dict[str, Any] = {}
        self.step: dict[str, Any] = {}
        self.evaluation: dict[str, Any] = {}
        self.workers: dict[str, dict[str, Any]] = {}
        self.rewards: deque[float] = deque(maxlen=_SPARK_LENGTH)

    def take(self, kind: str, data: dict[str, Any]) -> None:
        """One entry of the stream."""
        if kind == "state":
            self.job, self.ledger = data["job"], data["ledger"] or {}
        elif kind == "step":
            self.step = data
            if data["reward_mean"] is not None:
                self.rewards.append(data["reward_mean"])
        elif kind == "evaluation":
            self.evaluation = data
        elif kind == "worker":
            self.workers[data["worker"]] = data

    def __rich__(self) -> RenderableType:
        if not self.job:
            return Text("waiting for the gateway …", style="dim")
        return Group(self._progress(), *self._lines())

    def _progress(self) -> RenderableType:
        done, total = self.step.get("step", 0), self.job["total_steps"]
        row = Table.grid(padding=(0, 1))
        row.add_column(no_wrap=True)
        row.add_column(min_width=4, max_width=40)  # the bar, which gives way first on a narrow terminal
        row.add_column(no_wrap=True)
        row.add_column()
        row.add_row(
            f"[bold]{self.job['status']}[/]",
            ProgressBar(total=total or 1, completed=done),
            f"{done}/{total} steps",
            _eta(self.job["estimated_finish"]),
        )
        return row

    def _lines(self) -> Iterable[RenderableType]:
        if self.step:
            validation = f" · validation {decimal(self.evaluation['reward_mean'], 3)}" if self.evaluation else ""
            mean = decimal(self.step["reward_mean"], 3)
            yield _named("reward", f"{mean} {spark(self.rewards)}{validation}")
            bound = self.job["method"]["reinforcement"]["hyperparameters"]["max_staleness"]
            oldest = of_its_bound(self.ledger, bound)
            yield _named("ages", f"{ages_line(self.step)} · bound {bound}, oldest ever trained {oldest}")
        if self.ledger:
            yield _named("ledger", ledger_line(self.ledger))
        newest = max((w["version"] for w in self.workers.values()), default=0)
        for name, worker in sorted(self.workers.items()):
            yield _named(name, worker_line(worker, newest))


def of_its_bound(counts: dict[str, Any], newest: int | None) -> str:
    """The largest age that was trained, `?` where it is not known, and the bound of its own step; `newest` holds before
    the first."""
    bound = counts.get("largest_age_bound")
    largest = counts.get("largest_age")
    return f"{'?' if largest is None else largest} of {newest if bound is None else bound}"


def ages_line(step: dict[str, Any]) -> str:
    """Share of a step's tokens at each age."""
    tokens = {int(age): of_age["tokens"] for age, of_age in step["ages"].items()}
    whole = sum(tokens.values())
    if not whole:
        return "no tokens"
    shares = (f"{age}: {count / whole:.0%}" for age, count in sorted(tokens.items()) if count)
    return ", ".join(shares)


def ledger_line(ledger: dict[str, Any]) -> str:
    """Where the groups are; live states always, other ends where there are any."""
    states: dict[str, int] = ledger["states"]
    shown = [f"{name} {count}" for name, count in states.items() if count or name not in _ENDS]
    return f"admitted {ledger['admitted']} = " + " + ".join(shown)


def worker_line(worker: dict[str, Any], newest: int) -> str:
    """One worker's version, how it spends its time, and its errors."""
    behind = newest - worker["version"]
    lag = f", {behind} behind" if behind > 0 and worker["role"] == "rollout" else ""
    spent = worker["busy"] + sum(worker["waiting"].values())
    busy = f"busy {worker['busy'] / spent:.0%}" if spent else "starting"
    waits = max(worker["waiting"], key=worker["waiting"].__getitem__, default=None)
    wait = f", waits most for {waits}" if waits and worker["waiting"][waits] > 0 else ""
    errors = "".join(f", {count} {kind}" for kind, count in worker["errors"].items() if count)
    return f"version {worker['version']}{lag} · {busy}{wait} · {worker['tokens']:,} tokens{errors}"


def spark(values: Sequence[float] | deque[float]) -> str:
    """A line of blocks, lowest to highest of the values."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(_SPARK) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARK[round((v - low) * scale)] for v in values)


def _eta(finish: float | None) -> str:
    if finish is None:
        return ""
    return f"[dim]{timedelta(seconds=max(0, round(finish - time.time())))} left[/]"


def _named(name: str, text: str) -> Text:
    return Text.from_markup(f"[dim]{escape(name):10}[/] {escape(text)}")
