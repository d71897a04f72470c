"""Headrace against TRL's synchronous GRPOTrainer: time to the same held-out reward, and samples/s, in one run.

    each round, each task:   TRL and Headrace run one after the other; which one begins alternates
    after each run:          each of its checkpoints is evaluated, greedy on the validation file, by the code here

Equal on both sides: model folder, training file, reward function, batch (32 prompts × 8 completions), learning rate,
optimizer (AdamW, β = 0.9, 0.95), objective (GRPO, token mean, no divergence), temperature, max_tokens and number of
steps; each may use all cores. TRL generates with transformers' own `generate` (its continuous batching is hundreds of
times slower on a CPU), and with the better of two micro-batch sizes that were tried. Headrace runs `engine:
transformers`: in trials it was twice as fast as vLLM on the adder, where vLLM's overhead per request exceeds the time
of so small a model, and equally fast on the long-tailed task. Headrace skips groups whose rewards are all equal; TRL
does not. Time starts when the first step may begin, with models loaded; it includes writing checkpoints but not
evaluating them. The order of prompts differs: each side shuffles in its own way. Steps and targets were chosen after a
trial run: the adder reaches 0.9 after 12 steps on either side; the long-tailed task rises from 0.55 to 0.57 in 24 steps
of TRL and to 0.65 in 40 of Headrace, so its target is 0.6, five points above the base model. One seed. On the
long-tailed task the ratio of times follows from that of samples/s: both sides learn equally much per sample.

    python -m benchmarks.against_trl.run [--seed N] [--out FILE] [--env FOLDER] [--rounds N] [--task NAME]

The first run builds TRL's environment from `requirements.txt`; no figure includes that time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.against_trl.sides import Run, Task, cores, environment, run_headrace, run_trl
from headrace_lab.paths import ADDER, LONGTAIL, load_module
from headrace_lab.reports.benchmark_report import arguments, report

ADDER_SPEED, ADDER_TIME = 1.0, 1.0
"""PASS: on the adder task, the ratio of samples/s (Headrace to TRL) and the ratio of times to the target (TRL to
Headrace) are at least these."""
LONGTAIL_SPEED, LONGTAIL_TIME = 3.0, 3.0
"""PASS: on the long-tailed task, the two ratios are at least these."""
TRL_ENVIRONMENT = Path.home() / ".cache" / "headrace" / "against_trl"
TASKS = (
    Task("adder", ADDER, 64, 40, 40, 0.9, ADDER_SPEED, ADDER_TIME, 64, "transformers"),
    Task("longtail", LONGTAIL, 256, 48, 48, 0.6, LONGTAIL_SPEED, LONGTAIL_TIME, 64, "transformers"),
)


def evaluate(run: Run, task: Task) -> None:
    """Set the run's `accuracies` (greedy, on the validation file) and `target_seconds`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(cores())
    rows = [json.loads(line) for line in (task.folder / "validation.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(task.folder / "model")
    chats = [row["messages"] for row in rows]
    prompts = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    correct = reward()
    for _, seconds, folder in run.checkpoints:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            ids = model.generate(**prompts, max_new_tokens=task.max_tokens, do_sample=False)
        texts = tokenizer.batch_decode(ids[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        right = [correct({"output_text": text}, row) for text, row in zip(texts, rows, strict=True)]
        run.accuracies.append(sum(right) / len(rows))
        if run.target_seconds is None and run.accuracies[-1] >= task.target:
            run.target_seconds = seconds


def reward() -> Any:
    return load_module(ADDER / "reward.py").correct


def compare(task: Task, runs: list[Run]) -> dict[str, Any]:
    """Figures of one task over all rounds, and whether its thresholds are met."""
    trl, headrace = ([run for run in runs if run.side == side] for side in ("trl", "headrace"))
    speeds = {"trl": samples_per_second(trl), "headrace": samples_per_second(headrace)}
    seconds = {"trl": seconds_to_target(trl), "headrace": seconds_to_target(headrace)}
    faster = speeds["headrace"] / speeds["trl"]
    sooner = seconds["trl"] / seconds["headrace"] if seconds["trl"] and seconds["headrace"] else None
    return {
        "samples_per_second": speeds,
        "target": task.target,
        "seconds_to_target": seconds,
        "speed_ratio": faster,
        "time_ratio": sooner,
        "thresholds": {"speed_ratio": task.speed, "time_ratio": task.time},
        "engine": task.engine,
        "passed": faster >= task.speed and sooner is not None and sooner >= task.time,
        "runs": [shown(run) for run in runs],
    }


def samples_per_second(runs: list[Run]) -> float:
    return sum(run.samples for run in runs) / sum(run.seconds for run in runs)


def seconds_to_target(runs: list[Run]) -> float | None:
    """Mean over the rounds; None if a round did not reach the target."""
    reached = [run.target_seconds for run in runs if run.target_seconds is not None]
    return sum(reached) / len(reached) if len(reached) == len(runs) else None


def shown(run: Run) -> dict[str, Any]:
    """The run as it is stored in the result: without the folders of its checkpoints, which are deleted."""
    saved = [{"step": step, "seconds": seconds} for step, seconds, _ in run.checkpoints]
    return asdict(run) | {"checkpoints": saved}


def figures(task: Task, compared: dict[str, Any]) -> str:
    speed, target = compared["samples_per_second"], compared["seconds_to_target"]
    seconds = {side: "not reached" if value is None else f"{value:.0f} s" for side, value in target.items()}
    ratio = "no ratio" if compared["time_ratio"] is None else f"{compared['time_ratio']:.2f} x"
    return (
        f"{task.name}: {speed['headrace']:.0f} against {speed['trl']:.0f} samples/s, {compared['speed_ratio']:.2f} x "
        f"(at least {task.speed:g}), accuracy {task.target:g} after {seconds['headrace']} against {seconds['trl']}, "
        f"{ratio} (at least {task.time:g})"
    )


def measure(task: Task, python: Path, folder: Path, rounds: int, seed: int) -> list[Run]:
    """Run all rounds of both sides; the side that begins alternates."""
    runs = []
    for number in range(rounds):
        sides = ("trl", "headrace") if number % 2 == 0 else ("headrace", "trl")
        for side in sides:
            own = folder / f"{task.name}-{side}-{number}"
            own.mkdir()
            run = run_trl(python, task, own, seed + number) if side == "trl" else run_headrace(task, own, seed + number)
            evaluate(run, task)
            print(f"against_trl: {task.name}, {side}: {run.samples / run.seconds:.0f} samples/s, {run.accuracies}")
            runs.append(run)
    return runs


def main() -> None:
    parser = arguments("against_trl", __doc__)
    parser.add_argument("--env", type=Path, default=TRL_ENVIRONMENT, help="folder of TRL's environment")
    parser.add_argument("--torch-index", help="package index of PyTorch's CPU build, where the registry's is CUDA's")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--task", choices=[task.name for task in TASKS], help="one task only")
    options: argparse.Namespace = parser.parse_args()
    python = environment(options.env, options.torch_index)
    compared = {}
    with tempfile.TemporaryDirectory(prefix="headrace-against-trl-") as folder:
        for task in TASKS:
            if options.task in (None, task.name):
                runs = measure(task, python, Path(folder), options.rounds, options.seed)
                compared[task.name] = (task, compare(task, runs))
    passed = all(result["passed"] for _, result in compared.values())
    lines = "; ".join(figures(task, result) for task, result in compared.values())
    report("against_trl", passed, lines, {name: result for name, (_, result) in compared.items()}, options)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
