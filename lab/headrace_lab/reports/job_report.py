"""A report of a job: a folder with plots, the data behind them, and a page with both.

It is made from answers of the REST routes, so that it can be made anywhere and at any time after the job.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from headrace_core.ledger.counts import LIVE
from headrace_core.number_text import decimal
from headrace_gateway.cli.job_summary import of_its_bound

from .plot_style import INK, MUTED, set_style

BLUE, GREEN, AMBER, RED, GREY = "#2b6cb0", "#2f855a", "#d69e2e", "#c53030", "#cbd5e0"
AGE_COLOURS = ("#2c7a7b", "#38a89d", "#9ae6b4", "#fbd38d", "#ed8936", "#dd6b20", "#c05621", "#9b2c2c")
SHOWN_SHARE = 0.01
WAIT_COLOURS = ("#a0aec0", AMBER, "#b794f4", "#f687b3", "#90cdf4")


@dataclass(frozen=True, slots=True)
class Record:
    """The answers of the job's REST routes: job, ledger, metrics and reward."""

    job: dict[str, Any]
    ledger: dict[str, Any]
    metrics: list[dict[str, Any]]
    """All measurements, each with `kind` and `data`, oldest first."""
    reward: dict[str, Any]
    """The reward's figures of the whole job; the measurements of a long job may lack the newest heartbeats."""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The job's settings, defaults included."""
        settings: dict[str, Any] = self.job["method"]["reinforcement"]["hyperparameters"]
        return settings

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The measurements of one kind."""
        return [entry["data"] for entry in self.metrics if entry["kind"] == kind]


@dataclass(frozen=True, slots=True)
class Shares:
    """How one worker spent its time in steady state: shares by activity, which sum to 1."""

    worker: str
    seconds: float
    shares: dict[str, float]

    @property
    def busy(self) -> float:
        """Share of the time spent generating, or training."""
        return self.shares.get("busy", 0.0)


def steady_shares(record: Record) -> list[Shares]:
    """Each worker's shares after the first tenth of the steps, from its heartbeats. Empty with fewer than 3 steps."""
    steps = record.of("step")
    if len(steps) < 3:
        return []
    began, ended = steps[len(steps) // 10]["time"], steps[-1]["time"]
    heartbeats = [b for b in record.of("worker") if began <= b["time"] <= ended]
    shares = []
    for worker in sorted({b["worker"] for b in heartbeats}):
        own = [b for b in heartbeats if b["worker"] == worker]
        if len(own) > 1:
            shares.append(_between(own[0], own[-1]))
    return shares


def _between(first: dict[str, Any], last: dict[str, Any]) -> Shares:
    """The shares between two heartbeats of a worker."""
    seconds = last["uptime"] - first["uptime"]
    spent = {"busy": last["busy"] - first["busy"]}
    for reason, value in last["waiting"].items():
        spent[reason] = value - first["waiting"].get(reason, 0.0)
    spent["other"] = max(0.0, seconds - sum(spent.values()))
    shares = {k: v / seconds for k, v in spent.items() if v > 0.0005 * seconds}
    return Shares(last["worker"], seconds, shares)


def write_report(folder: Path, record: Record) -> Path:
    """Write plots (PNG), `record.json` and `index.html` to `folder`; returns the page. Needs at least one step."""
    folder.mkdir(parents=True, exist_ok=True)
    set_style()
    for name, draw in (("reward", _reward), ("ages", _ages), ("waiting", _waiting), ("ledger", _ledger)):
        figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
        draw(axes, record)
        figure.savefig(folder / f"{name}.png", dpi=150)
        plt.close(figure)
    (folder / "record.json").write_text(json.dumps(asdict(record)))
    page = folder / "index.html"
    page.write_text(_page(record))
    return page


def _reward(axes: Axes, record: Record) -> None:
    steps, evaluations = record.of("step"), record.of("evaluation")
    axes.plot([s["step"] for s in steps], [s["reward_mean"] for s in steps], color=BLUE, lw=1.4, label="train, sampled")
    if evaluations:
        axes.plot(
            [e["step"] for e in evaluations],
            [e["reward_mean"] for e in evaluations],
            color=GREEN,
            marker="o",
            ms=4,
            lw=1.8,
            label="validation, greedy",
        )
    axes.set(title="Reward", xlabel="step", ylabel="mean reward")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="lower right")


def _ages(axes: Axes, record: Record) -> None:
    steps = record.of("step")
    bound = record.hyperparameters["max_staleness"]
    ages = sorted({int(a) for s in steps for a in s["ages"]})
    totals = [max(1, sum(a["tokens"] for a in s["ages"].values())) for s in steps]
    share = [
        [s["ages"].get(str(age), {"tokens": 0})["tokens"] / total for s, total in zip(steps, totals, strict=True)]
        for age in ages
    ]
    trained = {int(age) for s in steps for age, a in s["ages"].items() if a["tokens"] > a["masked"]}
    colours = [AGE_COLOURS[min(age, len(AGE_COLOURS) - 1)] if age in trained else RED for age in ages]
    labels = [f"age {age}" + ("" if age in trained else ", masked") for age in ages]
    axes.stackplot([s["step"] for s in steps], share, colors=colours, labels=labels, lw=0)
    axes.set(
        title=f"Age of the tokens in each step (bound {bound}, oldest trained {of_its_bound(record.ledger, bound)})",
        xlabel="step",
        ylabel="share of tokens",
        ylim=(0, 1),
        xlim=(steps[0]["step"], max(steps[-1]["step"], steps[0]["step"] + 1)),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _waiting(axes: Axes, record: Record) -> None:
    shares = steady_shares(record)
    shown = {r for s in shares for r, share in s.shares.items() if share >= SHOWN_SHARE}
    reasons = ["busy", *sorted(shown - {"busy", "other"}), "other"]
    colours = dict(zip(reasons, (GREEN, *WAIT_COLOURS), strict=False)) | {"other": GREY}
    left = [0.0] * len(shares)
    for reason in reasons:
        width = [_share(s, reason, shown) for s in shares]
        label = reason if reason in ("busy", "other") else f"waits for {reason}"
        axes.barh([s.worker for s in shares], width, left=left, color=colours[reason], height=0.5, label=label)
        for row, (x, w) in enumerate(zip(left, width, strict=True)):
            if w >= 0.06:
                ink = "white" if reason == "busy" else INK
                axes.text(x + w / 2, row, f"{w:.0%}", ha="center", va="center", color=ink)
        left = [x + w for x, w in zip(left, width, strict=True)]
    axes.set(title="Who waited for whom, in steady state", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", visible=False)
    axes.get_figure().legend(frameon=False, loc="outside lower center", ncols=4)  # type: ignore[union-attr]


def _share(shares: Shares, reason: str, shown: set[str]) -> float:
    """Share of an activity; `other` includes the activities that are too small to be shown."""
    if reason != "other":
        return shares.shares.get(reason, 0.0)
    return sum(share for name, share in shares.shares.items() if name == "other" or name not in shown | {"busy"})


def _ledger(axes: Axes, record: Record) -> None:
    states = {k: v for k, v in reversed(record.ledger["states"].items()) if v or k not in LIVE}
    colours = {"trained": GREEN, "dropped_stale": AMBER, "filtered": AMBER, "cancelled": GREY}
    axes.barh(list(states), list(states.values()), color=[colours.get(s, RED) for s in states], height=0.6)
    for row, count in enumerate(states.values()):
        axes.text(count, row, f" {count}", va="center")
    axes.set(title=f"Ledger: {record.ledger['admitted']} groups admitted, each in exactly one state", xlabel="groups")
    axes.grid(axis="y", visible=False)


def _page(record: Record) -> str:
    job, steps, evaluations = record.job, record.of("step"), record.of("evaluation")
    facts = [
        ("Model", job["model"]),
        ("Algorithm", record.hyperparameters["algorithm"]),
        ("Steps", f"{len(steps)} in {steps[-1]['time'] - steps[0]['time']:.0f} s"),
        ("Oldest token trained", of_its_bound(record.ledger, record.hyperparameters["max_staleness"])),
        ("Tokens left out as too old", f"{record.ledger['masked_tokens']}"),
        ("Ledger", "balances" if record.ledger["balanced"] else "DOES NOT BALANCE"),
    ]
    if evaluations:
        facts.insert(2, ("Validation", " → ".join(decimal(evaluations[i]["reward_mean"], 3) for i in (0, -1))))
    facts += reward_facts(record.reward).items()
    facts += [(f"{s.worker} busy", f"{s.busy:.0%} of {s.seconds:.0f} s") for s in steady_shares(record)]
    updates = record.of("update")
    if updates:
        pauses = sorted(u["paused_seconds"] for u in updates)
        facts.append(("Weight updates", f"{len(updates)}, pause {1000 * pauses[len(pauses) // 2]:.1f} ms (median)"))
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts)
    plots = "".join(f'<img src="{n}.png" alt="{n}">' for n in ("reward", "ages", "waiting", "ledger"))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(job['id'])}</title><style>body{{font:15px/1.5 system-ui,sans-serif;color:{INK};"
        "max-width:860px;margin:2rem auto;padding:0 1rem}"
        "dl{display:grid;grid-template-columns:auto 1fr;gap:.2rem 1.5rem}"
        f"dt{{color:{MUTED}}}dd{{margin:0}}img{{width:100%;margin-top:1rem}}</style>"
        f"<h1>{html.escape(job['id'])}: {html.escape(job['status'])}</h1><dl>{rows}</dl>{plots}</html>"
    )


def reward_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """The measured figures of a reward's summary (`GET …/reward`) as text, by subject."""
    failures = ", ".join(f"{kind} {count}" for kind, count in summary["failures"].items())
    words = {"Reward failures": f"{failures or 'none'}, of {summary['completions']} completions"}
    if lacking := summary["sample_parse_errors"]:
        words["Scored 0 for what they lack"] = (
            f"{lacking} completions without the JSON, or its key, that the grader reads"
        )
    if (equal := summary["scored_again"]["equal"]) is not None:
        words["Scored again"] = f"{_percent(equal)} the same, {equal['count']} completions"
    for truth, flips in summary["truth"].items():
        rates = {"p01": "low made high", "p10": "high made low"}
        said = [f"{_percent(flips[rate])} {what}" for rate, what in rates.items() if flips[rate] is not None]
        if said:
            words[f"Against {truth}"] = ", ".join(said)
    if (shift := summary["drift"]["mean_shift"]) is not None:
        moves = "it moves" if summary["drift"]["moves"] else "within its error"
        words["Drift of the reward"] = f"{shift['value']:+.3g} ({shift['low']:+.3g} to {shift['high']:+.3g}): {moves}"
    return words


def _percent(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"
