"""The part of the vLLM engine that runs inside vLLM's worker process, mixed into its worker class.

    engine process ── headrace_stage ──► starts the staging thread, returns at once; steps go on
                   ── headrace_stage_state ──► "staging" · "ready" · "failed: cause"
                   ── headrace_commit ──► the switch, between two steps; the caller paused the scheduler

All three run on the worker's own thread, one after another with the steps, so a commit can never fall into a step.

What is measured of a distribution comes back in the place of log-probabilities: see `measure`.
Nothing here imports vLLM at module level: vLLM imports this module, by name, while it builds its worker.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch

from ..sampling import spread
from .weight_updates import AdapterSlot, ShadowWeights, StagedWeights, WeightSwitch

MEASURED_COLUMNS = 2
"""A request that asks vLLM for so many log-probabilities beside its token's own gets entropy and certainty instead."""


def measure(sampler: Any) -> None:
    """Let vLLM's sampler return entropy and certainty of each distribution in the place of its two best tokens.

    It holds all log-probabilities of the processed distribution there anyway; whole, they would be a vocabulary of
    numbers a token between processes. No other request asks for exactly two.
    """
    gather = sampler.gather_logprobs

    def gather_measured(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> Any:
        if num_logprobs != MEASURED_COLUMNS:
            return gather(logprobs, num_logprobs, token_ids)
        own = gather(logprobs, 0, token_ids)
        columns = torch.stack([own.logprobs[:, 0], *spread(logprobs)], dim=1)
        ids = own.logprob_token_ids.expand_as(columns).contiguous()
        return own._replace(logprob_token_ids=ids, logprobs=columns)

    sampler.gather_logprobs = gather_measured


class StagingThread:
    """Runs one `stage` at a time. `state` and `seconds` may be read from any thread."""

    def __init__(self, switch: WeightSwitch) -> None:
        self._switch = switch
        self._thread: threading.Thread | None = None
        self.state = "idle"
        self.seconds = 0.0

    def begin(self, folder: Path) -> None:
        """Start staging `folder`; raises RuntimeError while another staging runs."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("another version is being staged")
        self.state = "staging"
        self._thread = threading.Thread(target=self._stage, args=(folder,), name="headrace-stage-weights", daemon=True)
        self._thread.start()

    def _stage(self, folder: Path) -> None:
        began = time.monotonic()
        # One OpenMP thread for this thread only: a second team would fight the steps' own for the cores, spinning.
        # (vLLM's CPU worker replaces torch.set_num_threads by a no-op, hence the C function.)
        torch._C.set_num_threads(1)
        try:
            with torch.no_grad():
                self._switch.stage(folder)
        except Exception as error:
            # Kept, not raised: the state is how the cause reaches the process that asked.
            self.state = f"failed: {type(error).__name__}: {error}"
        else:
            self.state = "ready"
        finally:
            self.seconds = time.monotonic() - began


class WeightExtension:
    """Methods vLLM adds to its worker (`worker_extension_cls`); called by `collective_rpc` under these names."""

    model_runner: Any
    vllm_config: Any
    device: torch.device

    def headrace_prepare(self, distributions: bool) -> None:
        """Once, before the first request: choose the switch for this device and build what it needs."""
        if distributions:
            measure(self.model_runner.sampler)
        switch: WeightSwitch
        if self.vllm_config.lora_config is not None:
            switch = AdapterSlot(self.model_runner)
        elif self.device.type == "cpu":
            switch = ShadowWeights(self.model_runner.get_model(), self.vllm_config)
        else:
            switch = StagedWeights(self.model_runner, self.device)
        self._headrace_switch = switch
        self._headrace_staging = StagingThread(switch)

    def headrace_stage(self, folder: str) -> None:
        """Start reading and preparing the weights in `folder`; returns at once."""
        self._headrace_staging.begin(Path(folder))

    def headrace_stage_state(self) -> tuple[str, float]:
        """(`staging` | `ready` | `failed: cause`, seconds the last staging took)."""
        return self._headrace_staging.state, self._headrace_staging.seconds

    def headrace_commit(self) -> float:
        """Put the staged weights into the live model; returns the seconds it took."""
        if self._headrace_staging.state != "ready":
            raise RuntimeError(f"cannot commit weights that are {self._headrace_staging.state}")
        began = time.monotonic()
        with torch.no_grad():
            self._headrace_switch.commit()
        self._headrace_staging.state = "idle"
        return time.monotonic() - began
