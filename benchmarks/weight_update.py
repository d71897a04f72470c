"""How long a weight update pauses vLLM's generation, compared with a plain memory copy of the same bytes.

For a tiny model and for one of 135M parameters in float32 (540 MB), with requests in flight throughout:

* `pause`: seconds in which no decode step could run, as the engine reports it (`UpdateReport.paused_seconds`), mode
  `keep_kv`;
* `gap`: the same as a client sees it: how much longer than usual a streaming request waited for its next token;
* `copy`: one thread copies the same number of bytes once within memory;
* `quiet` and `staging` rates: tokens/s without updates, and with updates back to back, when nearly all the time the
  next weights are read and packed concurrently with generation.

    python -m benchmarks.weight_update [--seed N] [--out FILE] [--model FOLDER]

`--model` names a folder with SmolLM2-135M; without it, random weights of exactly its configuration are used, made in
shared memory and removed at the end (the time of an update does not depend on the values).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace_lab.training.tiny_models import make_model, smollm2_config, tiny_config

COPY_MULTIPLE_LIMIT = 3.0
"""PASS: the median pause of the 135M model is at most this many times as long as a copy of its bytes."""
TINY_PAUSE_LIMIT = 0.025
"""PASS: the median pause of the tiny model is at most this many seconds (its copy takes less than 1 ms, less than the
call into the engine's process)."""
WINDOW_SECONDS = 10.0
"""Length of each of the two windows in which tokens are counted."""


@dataclass(frozen=True)
class Case:
    name: str
    clients: int
    """Number of requests kept in flight."""
    tokens: int
    """Completion tokens of each request."""
    updates: int
    max_running: int = 64


@dataclass
class Figures:
    name: str
    weights: str
    bytes: int
    requests_in_flight: float
    pause_seconds: list[float]
    gap_seconds: list[float]
    staged_seconds: list[float]
    copy_seconds: float
    pause_per_copy: float
    quiet_tokens_per_second: float
    staging_tokens_per_second: float


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def copy_seconds(size: int) -> float:
    """Median of 7 copies of `size` bytes between buffers that are already mapped, by one thread."""
    source, target = np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    took = []
    for _ in range(7):
        began = time.perf_counter()
        np.copyto(target, source)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


class Load:
    """Clients that keep requests in flight, and one that streams, to measure gaps between tokens as a client."""

    def __init__(self, engine: Any, case: Case, vocabulary: int, seed: int) -> None:
        self._engine, self._case, self._vocabulary = engine, case, vocabulary
        self._chance = np.random.default_rng(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self.tokens = 0
        self.token_times: list[float] = []

    def start(self) -> None:
        clients = [self._client() for _ in range(self._case.clients)]
        self._tasks = [asyncio.create_task(work) for work in (*clients, self._stream())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError):
                raise RuntimeError("a client ended early") from outcome

    def _prompt(self) -> Any:
        return self._chance.integers(2, self._vocabulary, size=16, dtype=np.int32)

    async def _client(self) -> None:
        from headrace_rollout.engines.engine import SamplingConfig

        while True:
            sampled = await self._engine.generate(self._prompt(), SamplingConfig(self._case.tokens))
            self.tokens += len(sampled.token_ids)

    async def _stream(self) -> None:
        """Stream tokens from vLLM directly: the engine's interface reports finished completions only."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        llm = self._engine._process.llm
        number = 0
        while True:
            number += 1
            params = SamplingParams(max_tokens=400, detokenize=False, output_kind=RequestOutputKind.DELTA)
            async for _ in llm.generate(tokens_input(self._prompt().tolist()), params, f"s{number}"):
                self.token_times.append(time.perf_counter())

    async def rate(self, seconds: float) -> float:
        """Tokens/s of the clients over `seconds`."""
        before, began = self.tokens, time.perf_counter()
        ended, _ = await asyncio.wait(self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if ended:
            await self.stop()
        return (self.tokens - before) / (time.perf_counter() - began)

    def gap_at(self, began: float, ended: float) -> float:
        """Longest wait for a token within [began, ended], minus the median wait before it; at least 0."""
        times = np.asarray(self.token_times)
        waits, at = np.diff(times), times[1:]
        usual = float(np.median(waits[at < began][-100:]))
        return max(float(waits[(at >= began) & (at <= ended)].max(initial=0.0)) - usual, 0.0)


async def measure(case: Case, folders: tuple[Path, Path], weights: str, seed: int) -> Figures:
    from headrace_rollout.engines.engine import EngineConfig
    from headrace_rollout.engines.vllm.engine import VllmEngine

    size = weight_bytes(folders[0])
    copied = copy_seconds(size)
    engine = VllmEngine(EngineConfig(folders[0], max_running=case.max_running, seed=seed))
    await engine.start()
    try:
        vocabulary = json.loads((folders[0] / "config.json").read_text())["vocab_size"]
        load = Load(engine, case, vocabulary, seed)
        load.start()
        await asyncio.sleep(3.0)
        quiet = await load.rate(WINDOW_SECONDS)
        reports, gaps = [], []
        for number in range(case.updates):
            report = await engine.update(engine.version + 1, folders[(number + 1) % 2], "keep_kv")
            ended = time.perf_counter()
            await asyncio.sleep(0.5)
            reports.append(report)
            gaps.append(load.gap_at(ended - report.paused_seconds - 0.05, ended + 0.3))
        staging = await rate_while_updating(load, engine, folders)
        await load.stop()
    finally:
        await engine.close()
    pauses = [report.paused_seconds for report in reports]
    return Figures(
        name=case.name,
        weights=weights,
        bytes=size,
        requests_in_flight=statistics.mean(report.requests_in_flight for report in reports),
        pause_seconds=pauses,
        gap_seconds=gaps,
        staged_seconds=[report.staged_seconds for report in reports],
        copy_seconds=copied,
        pause_per_copy=statistics.median(pauses) / copied,
        quiet_tokens_per_second=quiet,
        staging_tokens_per_second=staging,
    )


async def rate_while_updating(load: Load, engine: Any, folders: tuple[Path, Path]) -> float:
    """Tokens/s while updates follow each other without a pause."""

    async def keep_updating() -> None:
        while True:
            await engine.update(engine.version + 1, folders[engine.version % 2], "keep_kv")

    updating = asyncio.create_task(keep_updating())
    rate = await load.rate(WINDOW_SECONDS)
    updating.cancel()
    await asyncio.wait({updating}, timeout=60)
    return rate


def other_weights(model: Path, seed: int, folder: Path) -> Path:
    """A second set of weights for the model: its configuration with random weights."""
    from transformers import AutoConfig

    return make_model(AutoConfig.from_pretrained(model), seed, folder)


async def run(seed: int, model: Path | None, root: Path) -> list[Figures]:
    tiny = (make_model(tiny_config(), seed, root / "tiny-0"), make_model(tiny_config(), seed + 1, root / "tiny-1"))
    figures = [await measure(Case("tiny", clients=32, tokens=64, updates=10), tiny, "random", seed)]
    if model is None:
        large = (make_model(smollm2_config(), seed, root / "l-0"), make_model(smollm2_config(), seed + 1, root / "l-1"))
    else:
        large = (model, other_weights(model, seed + 1, root / "l-1"))
    kind = "random weights of SmolLM2-135M's configuration" if model is None else str(model.name)
    figures.append(await measure(Case("135M", clients=8, tokens=16, updates=6), large, kind, seed))
    return figures


def verdict(figures: list[Figures]) -> str:
    tiny, large = figures
    tiny_pause, large_pause = statistics.median(tiny.pause_seconds), statistics.median(large.pause_seconds)
    passed = large.pause_per_copy <= COPY_MULTIPLE_LIMIT and tiny_pause <= TINY_PAUSE_LIMIT
    return (
        f"weight_update: {'PASS' if passed else 'MISS'} 135M pause {large_pause * 1e3:.1f} ms = "
        f"{large.pause_per_copy:.2f} x copy {large.copy_seconds * 1e3:.1f} ms (limit {COPY_MULTIPLE_LIMIT:g} x), "
        f"tiny pause {tiny_pause * 1e3:.1f} ms (limit {TINY_PAUSE_LIMIT * 1e3:.0f} ms), "
        f"135M tokens/s {large.quiet_tokens_per_second:.0f} -> {large.staging_tokens_per_second:.0f} while staging, "
        f"weights: {large.weights}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "weight_update.json")
    parser.add_argument("--model", type=Path, help="a folder with SmolLM2-135M; random weights without it")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="headrace-weight-update-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        figures = asyncio.run(run(options.seed, options.model, root))
    finally:
        shutil.rmtree(root)
        # The cancelled clients' frames still hold vLLM's objects, whose __del__ fails at the interpreter's exit.
        gc.collect()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"seed": options.seed, "cases": [asdict(f) for f in figures]}, indent=2) + "\n")
    print(verdict(figures))


if __name__ == "__main__":
    main()
