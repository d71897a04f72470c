"""Asynchronous against synchronous: AReaL's throughput by staleness bound, its cluster simulated, and on this machine.

Simulated: the scheduler that runs for real (ledger, staleness control, both workers) in virtual time, around devices as
fast as AReaL's were (`areal_figures` says how that is known). Synchronous is the same scheduler with max_staleness 0
on the same split of devices, as AReaL's own; the last row is the best a synchronous system could do, all devices
generating and then all training. Measured here: the service on the demo's task with a heavy tail of lengths, bounds in
turns. Only tokens that contributed to a gradient count.

How far it reaches. The devices' speeds are set so that η = 0 and η = ∞ come out as AReaL's: the ends of the simulated
curve are inputs, what lies between them, what is masked and who waits are results. So 3.1 times is no gain over AReaL:
it is the ceiling that its own η = ∞ sets, 3.08, within the fit; the result is that η = 4 reaches it, where AReaL's came
to 2.77, and that η = 2 comes to 2.63. Some of AReaL's figures (250 steps,
231k tokens/s on 4 nodes) are known at second hand; the split of devices in its synchronous mode is assumed. Its runs on
8 GPUs and of 7B to 32B are not simulated: batch or tokens a step are not published. The first runs of this script found
that rollout workers took the whole window at the first ask; the figures are of the scheduler without that.

    python -m evidence.async_speed.run [--seed N] [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evidence.async_speed import areal_figures as areal
from evidence.async_speed.longtail_jobs import run_jobs
from evidence.async_speed.plot import plot
from headrace_lab.paths import ROOT
from headrace_lab.reports.benchmark_report import arguments, report
from headrace_lab.virtual.simulated_cluster import Cluster, measure

# Written before the first run.
SIMULATED_SPEEDUP = 2.5
"""PASS: throughput at η = 4 is at least this many times that at η = 0, on the 16-node cluster with separate devices for
training in both; AReaL reports 2.77."""
REAL_SPEEDUP = 1.5
"""PASS: trained tokens/s at the best bound are at least this many times those at bound 0, measured with the service."""

SHOWN = 4
"""The bound whose speed-up is compared with the threshold: AReaL's default, for which it reports 2.77."""
WARM_STEPS, STEPS = 6, 16
"""Steps of a simulated run: those before its queue is in a steady state, and those that are measured."""
REAL_BOUNDS, REAL_ROUNDS, REAL_STEPS = (0, 4), 2, 24
IMAGE = ROOT / "docs" / "images" / "async_speed.png"


def main() -> None:
    parser = arguments("async_speed", __doc__)
    parser.add_argument("--image", type=Path, default=IMAGE, help="where the plot goes")
    options = parser.parse_args()
    result = {"simulated": simulated(options.seed), "real": real(options.seed)}
    plot(result, options.image)
    conclude(result, options)


def simulated(seed: int) -> dict[str, Any]:
    """Throughput by bound with AReaL's split of devices; `relative` is relative to our own at η = 0."""
    cluster = areal.split()
    runs = [_simulate(cluster, bound, seed) for bound in areal.PUBLISHED]
    colocated = _simulate(areal.colocated(), 0, seed)
    base = runs[0]["tokens_per_second"]
    for entry in (*runs, colocated):
        entry["relative"] = entry["tokens_per_second"] / base
    for entry, published in zip(runs, areal.PUBLISHED.values(), strict=True):
        entry["published"] = published * 1e3
    return {"scale": areal.SCALE, "speed": asdict(areal.decode_speed()), "curve": runs, "colocated": colocated}


def _simulate(cluster: Cluster, bound: int, seed: int) -> dict[str, Any]:
    """Figures scaled up from the simulated part to the whole cluster."""
    seeded = replace(cluster, lengths=replace(cluster.lengths, seed=seed))
    found = asdict(measure(seeded, bound, WARM_STEPS, STEPS))
    found["tokens_per_second"] *= areal.SCALE
    found["name"] = "∞" if bound == areal.UNBOUNDED else str(bound)
    print(
        f"  {cluster.rollout_devices * areal.SCALE} rollout devices, η = {found['name']}: "
        f"{found['tokens_per_second'] / 1e3:.1f}k tokens/s, {found['seconds']:.0f} s a step, "
        f"masked {found['masked_share']:.1%}, trainer busy {found['trainer_busy']:.0%}",
        flush=True,
    )
    return found


def real(seed: int) -> dict[str, Any]:
    """Run rounds in which the bounds alternate; a bound's speed is the median over its rounds."""
    with tempfile.TemporaryDirectory(prefix="headrace-evidence-") as folder:
        rounds = run_jobs(Path(folder), seed, list(REAL_BOUNDS) * REAL_ROUNDS, REAL_STEPS)
    bounds = []
    for bound in REAL_BOUNDS:
        own = [r["tokens_per_second"] for r in rounds if r["max_staleness"] == bound]
        bounds.append({"max_staleness": bound, "tokens_per_second": statistics.median(own), "rounds": own})
    return {"bounds": bounds, "rounds": rounds}


def conclude(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the JSON result and print the last line."""
    curve, colocated = result["simulated"]["curve"], result["simulated"]["colocated"]
    shown = next(p for p in curve if p["max_staleness"] == SHOWN)
    synchronous, *others = result["real"]["bounds"]
    best = max(others, key=lambda b: b["tokens_per_second"])
    speedup = best["tokens_per_second"] / synchronous["tokens_per_second"]
    figures = (
        f"simulated η = {SHOWN}: {shown['relative']:.2f} times synchronous (AReaL "
        f"{shown['published'] / curve[0]['published']:.2f}), {shown['relative'] / colocated['relative']:.2f} times "
        f"synchronous on all devices; here, bound {best['max_staleness']}: {speedup:.2f} times bound 0 "
        f"({best['tokens_per_second']:,.0f} and {synchronous['tokens_per_second']:,.0f} tokens/s)"
    )
    result["table"] = _table(curve, colocated)
    result["thresholds"] = {
        f"simulated, η = {SHOWN} over η = 0": f"≥ {SIMULATED_SPEEDUP}",
        "here, the best bound over bound 0": f"≥ {REAL_SPEEDUP}",
    }
    passed = shown["relative"] >= SIMULATED_SPEEDUP and speedup >= REAL_SPEEDUP
    report("async_speed", passed, figures, result, options)


def _table(curve: list[dict[str, Any]], colocated: dict[str, Any]) -> list[list[str]]:
    heading = ["η", "AReaL, k tokens/s", "", "simulated, k tokens/s", "", "masked", "trainer busy", "mean age"]
    rows = []
    for point in (*curve, colocated):
        published = point.get("published")
        rows.append(
            [
                point["name"],
                f"{published / 1e3:.1f}" if published else "",
                f"{published / curve[0]['published']:.2f}" if published else "",
                f"{point['tokens_per_second'] / 1e3:.1f}",
                f"{point['relative']:.2f}",
                f"{point['masked_share']:.1%}",
                f"{point['trainer_busy']:.0%}",
                f"{point['mean_age']:.1f}",
            ]
        )
    rows[-1][0] = "0, all devices"
    return [heading, *rows]


if __name__ == "__main__":
    main()
