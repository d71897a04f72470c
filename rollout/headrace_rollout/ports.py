"""The components that a rollout worker is given, and how the real ones are made from its configuration.

A simulation passes others: an engine without a model, a reward that takes no time, a virtual clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

from headrace_core.clock import SYSTEM_CLOCK, Clock
from headrace_core.jobs.job_record import JobRecord
from headrace_core.protocols.worker import WorkerConfig
from headrace_core.redis_access.client import connect
from headrace_core.seeds import derived_seed
from headrace_core.storage.weight_store import WeightStore
from headrace_rewards.protocol import Reward
from headrace_rewards.registry import build, validate
from headrace_rewards.sandbox.kernel import control_groups
from headrace_rewards.sandbox.level_probe import probe_level

from .completion_sampler import needs
from .engines import create
from .engines.engine import Engine, EngineConfig
from .prompts import Prompt, Tokenizer
from .reading import read_within_limits

HEARTBEAT_SECONDS = 2.0


class PromptSource(Protocol):
    """Reads a job's data as prompts."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. The first use may load it from disk."""
        ...

    async def read(self, file: str, longest: int) -> list[Prompt]:
        """All rows of `file`, in order. Raises `InvalidData` for a prompt of more than `longest` tokens."""
        ...


class PromptFiles:
    """JSONL files, rendered by the chat template of the model in the folder `model`.

    `fingerprints` are the SHA-256 of the files as they were uploaded, by name; a file that differs is refused.
    """

    def __init__(self, model: Path, fingerprints: dict[str, str]) -> None:
        self._model, self._fingerprints = model, fingerprints

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """See `PromptSource`."""
        return Tokenizer(self._model)

    async def read(self, file: str, longest: int) -> list[Prompt]:
        """See `PromptSource` and `read_within_limits`."""
        path = Path(file)
        return await read_within_limits(path, self.tokenizer, longest, self._fingerprints.get(path.name))


@dataclass(frozen=True)
class RolloutPorts:
    """The components of a rollout worker, which starts engine and reward, and closes them and `job` when it stops."""

    job: JobRecord
    engine: Engine
    reward: Reward
    weights: WeightStore
    prompts: PromptSource
    sandbox: Callable[[], Awaitable[str]]
    """Describes how users' reward code is contained on this machine, for the event of the worker's start."""
    clock: Clock = SYSTEM_CLOCK
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    """Seconds between two heartbeats."""

    @classmethod
    def from_config(cls, config: WorkerConfig) -> Self:
        """The real components, not started. Raises `InvalidRequest` for an invalid grader."""
        return cls(
            job=JobRecord.on(connect(config.redis_url, config.redis_wait), config.job_id),
            engine=create(config.settings.engine, engine_config(config)),
            reward=build(config.grader, config.reward_rules),
            weights=WeightStore(Path(config.weights_root), config.job_id),
            prompts=PromptFiles(Path(config.model_path), config.fingerprints),
            sandbox=_confinement,
        )


def engine_config(config: WorkerConfig) -> EngineConfig:
    """The configuration of the worker's engine. Raises `InvalidRequest` for an invalid grader."""
    s, grader = config.settings, validate(config.grader)
    return EngineConfig(
        model=Path(config.model_path),
        max_model_len=s.max_context,
        max_running=s.max_running,
        threads=config.threads,
        kv_cache_gib=s.kv_cache_gib,
        gpus=config.gpus,
        gpu_memory_utilization=s.gpu_memory_utilization,
        tensor_parallel_size=s.tensor_parallel_size,
        max_num_batched_tokens=s.max_num_batched_tokens,
        enforce_eager=s.enforce_eager,
        quantization=s.quantization,
        engine_options=s.engine_options,
        seed=derived_seed(s.seed, config.worker),  # workers must not sample the same completions
        update_mode=s.update_mode,
        lora_rank=s.lora_rank,
        distributions=any("distribution" in needs(grader, evaluating) for evaluating in (False, True)),
        start_timeout=config.start_timeout,
        update_timeout=config.update_timeout,
    )


async def _confinement() -> str:
    return f"{(await probe_level()).level}, {control_groups.held()}"
