"""The part of the vLLM engine that runs in vLLM's worker process: methods that vLLM adds to its worker class.

    engine process ── headrace_stage ──► starts the staging thread, returns at once; steps go on
                   ── headrace_stage_state ──► "staging" · "ready" · "failed: cause"
                   ── headrace_commit ──► the switch, between two steps; the caller has paused the scheduler

All three run on the worker's own thread, as the steps do, so that a commit can never happen during a step.

Measurements of distributions are returned in the place of log-probabilities: see `measure`.
This module does not import vLLM at module level, because vLLM imports it, by name, while it builds its worker class.
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
"""A request for this many log-probabilities besides the sampled token's gets entropy and certainty instead."""


def measure(sampler: Any) -> None:
    """Make vLLM's sampler return entropy and certainty of each distribution in the place of its two likeliest tokens.

    The sampler has the log-probabilities of the whole distribution there. Sending them to another process would be a
    whole vocabulary of numbers per token. No other request asks for exactly two.
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
    """Runs one `stage` at a time in a thread. `state` and `seconds` may be read from any thread."""

    def __init__(self, switch: WeightSwitch) -> None:
        self._switch = switch
        self._thread: threading.Thread | None = None
        self.state = "idle"
        self.seconds = 0.0

    def begin(self, folder: Path) -> None:
        """Start staging `folder`. Raises RuntimeError while another staging runs."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("another version is being staged")
        self.state = "staging"
        self._thread = threading.Thread(target=self._stage, args=(folder,), name="headrace-stage-weights", daemon=True)
        self._thread.start()

    def _stage(self, folder: Path) -> None:
        began = time.monotonic()
        # Only one OpenMP thread here: a second team of threads would compete with the decode steps for the cores, by
        # spinning. (vLLM's CPU worker replaces torch.set_num_threads by a no-op, hence the C function.)
        torch._C.set_num_threads(1)
        try:
            with torch.no_grad():
                self._switch.stage(folder)
        except Exception as error:
            # Not raised in this thread: the engine process polls the state, and so gets the cause.
            self.state = f"failed: {type(error).__name__}: {error}"
        else:
            self.state = "ready"
        finally:
            self.seconds = time.monotonic() - began


class WeightExtension:
    """Methods that vLLM adds to its worker class (`worker_extension_cls`); `collective_rpc` calls them by name."""

    model_runner: Any
    vllm_config: Any
    device: torch.device

    def headrace_prepare(self, distributions: bool) -> None:
        """Choose and construct the weight switch for this device. Call it once, before the first request."""
        if distributions:
            measure(self.model_runner.sampler)
        switch: WeightSwitch
        if self.vllm_config.lora_config is not None:
            switch = AdapterSlot(self.model_runner)
        elif self.device.type == "cpu":
            switch = ShadowWeights(self.model_runner.get_model(), self.vllm_config)
        else:
            switch = StagedWeights(self.model_runner, self.vllm_config, self.device)
        self._headrace_switch = switch
        self._headrace_staging = StagingThread(switch)

    def headrace_stage(self, folder: str) -> None:
        """Start to read and prepare the weights in `folder`; returns at once."""
        self._headrace_staging.begin(Path(folder))

    def headrace_stage_state(self) -> tuple[str, float]:
        """(`staging` | `ready` | `failed: cause`, seconds the last staging took)."""
        return self._headrace_staging.state, self._headrace_staging.seconds

    def headrace_commit(self) -> float:
        """Apply the staged weights to the running model. Returns the seconds it took."""
        if self._headrace_staging.state != "ready":
            raise RuntimeError(f"cannot commit weights that are {self._headrace_staging.state}")
        began = time.monotonic()
        with torch.no_grad():
            self._headrace_switch.commit()
        self._headrace_staging.state = "idle"
        return time.monotonic() - began
