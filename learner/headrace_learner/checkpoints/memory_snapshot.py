"""Snapshots: the learner's state in the memory of its node, where it outlives the learner.

    torch's thread     … settle ─► begin ─► claim ─► forward, backward ─► (wait) ─► optimizer ─► settle ─► begin …
    snapshot's thread              └─► copy into generation g ────────────► │ ─► parity over ranks ─► seal g
                                                                            └ copied: the state may change

Between two updates the state is only read, so it is copied meanwhile; a step waits for that only where its forward and
backward passes are over before (`stalled`). Idea: REFT (arXiv 2310.12670).

Invariants: of two generations one is whole at any moment after the first, whenever this process is killed; only the
state of settled steps is taken, so none is ever newer than the ledger but where the ledger lost something, and such
are made void before they can be mistaken for the step that takes their place; no more memory is held than two
generations, with several ranks and their parity 2 × N / (N − 1); what is restored is what was copied, bit for bit.

With several ranks each keeps its own shard on its node, and of one rank that lost its own it is rebuilt (`xor_parity`).
"""

from __future__ import annotations

import shutil
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage import private_files
from headrace_core.storage.snapshot_folder import folder

from ..distributed.process_group import ProcessGroup
from ..training.trainer import Trainer
from . import xor_parity
from .device_copy import copy_out
from .shm_segment import WORD, Header, Segment, check_size

GENERATIONS = 2
_MEMORY_SHARE = 0.5
"""Snapshots take at most so much of what is free, of the machine's memory and of the folder's file system: the engine
and the next step need some, and published weights of three versions, which may be in the same place."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` found."""

    version: int | None
    """The policy version that the trainer is at now; None: nothing was restored."""
    passed_over: tuple[str, ...]
    """On this rank's node, each with what is wrong."""


@dataclass(frozen=True, slots=True)
class _Generation:
    content: Segment
    parity: Segment | None
    """None for a learner of one process."""


class Snapshots:
    """Of one rank's trainer. All ranks call `restore`, `begin` and `close` in the same order, in torch's thread."""

    def __init__(self, trainer: Trainer, place: Path) -> None:
        """`place`: of the job, in memory of this node."""
        self._trainer, self._folder, self._ranks = trainer, place, trainer.ranks
        self._layout, size = _layout(trainer)
        ranks = self._ranks.size
        self._block = xor_parity.block_size(_largest(size, self._ranks), ranks) if ranks > 1 else 0
        self._size = self._block * (ranks - 1) if ranks > 1 else size
        self._generations: list[_Generation] | None = None
        self._next = 0
        self._thread = ThreadPoolExecutor(1, "snapshot")
        self._copied: Future[None] | None = None
        self._sealed: Future[None] | None = None
        self.stalled = 0.0
        """Seconds that updates have waited for copies, in all."""
        for model_optimizer in trainer.optimizers.values():
            model_optimizer.before_update = self.wait

    # ── write ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _reserve(self) -> str | None:
        """Take the memory. Returns why there is none, on all ranks alike."""
        wrong = None
        try:
            self._check_room()
            self._generations = [self._open(number) for number in range(GENERATIONS)]
        except OSError as error:
            wrong = f"no memory for snapshots of {GENERATIONS * self._size / 2**20:.0f} MiB: {error}"
        lacking = torch.tensor(float(wrong is not None))
        if not self._ranks.sum(lacking):
            return None
        self._generations = None
        return wrong or "another rank of the learner has no memory for snapshots"

    def begin(self, version: int) -> str | None:
        """Start taking the state as it is now, of policy `version`; returns at once, unless the last is not done yet.

        The first time, memory is reserved; where there is none, nothing is taken, and the reason is returned.
        """
        if self._generations is None and (wrong := self._reserve()):
            return wrong
        assert self._generations is not None
        self.finish()
        generation = self._generations[self._next]
        self._next = (self._next + 1) % GENERATIONS
        tensors = [torch.get_rng_state(), *_tensors(self._trainer)]
        ready = torch.cuda.current_stream().record_event() if self._trainer.policy.device.type == "cuda" else None
        self._copied = self._thread.submit(_copy, tensors, generation, ready)
        self._sealed = self._thread.submit(self._seal, generation, version, self._copied)
        return None

    def wait(self) -> None:
        """Returns when the state may change. Raises what went wrong with the copy."""
        if self._copied is not None:
            began = time.perf_counter()
            copied, self._copied = self._copied, None
            copied.result()
            self.stalled += time.perf_counter() - began

    def finish(self) -> None:
        """Returns when the one under way is whole. Raises what went wrong with it."""
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            sealed.result()

    def close(self) -> None:
        """The last is whole, or what went wrong with it is raised; nothing is left running. Idempotent."""
        self._thread.shutdown()
        self.finish()

    def _seal(self, generation: _Generation, version: int, copied: Future[None]) -> None:
        copied.result()
        if generation.parity is not None:
            xor_parity.fill(generation.parity.content, generation.content.content, self._ranks)
            generation.parity.seal(self._header(version))
        generation.content.seal(self._header(version))

    def _header(self, version: int) -> Header:
        return Header(version, self._ranks.index, self._ranks.size, self._layout)

    # ── read ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def restore(self, least: int, most: int) -> Restored:
        """Bring the trainer to the newest version in [least, most] that there is a whole snapshot of.

        Any newer than `most`, the ledger's version, is made void.
        """
        found, wrong = self._look(most)
        held = torch.zeros(self._ranks.size, GENERATIONS, dtype=torch.int64)
        held[self._ranks.index] = torch.tensor([0 if version is None else version for version in found])
        version, lost = _choose(self._ranks.sum(held), max(least, 1))
        if version is None:
            return Restored(None, tuple(wrong))
        number = None if self._ranks.index == lost else found.index(version)
        content = self._content(number, lost)
        _write_back(content, self._trainer)
        self._next = 0 if number is None else (number + 1) % GENERATIONS
        return Restored(version, tuple(wrong))

    def _content(self, number: int | None, lost: int | None) -> Tensor:
        """uint8 [size]: of this rank's generation `number`, or rebuilt from the other ranks'."""
        if number is not None:
            generation = self._open(number)
            content, own_parity = generation.content.content, generation.parity
            if lost is not None and own_parity is not None:
                xor_parity.rebuild(lost, content, own_parity.content, self._ranks)
            return content
        assert lost is not None
        content = torch.zeros(self._size, dtype=torch.uint8)
        xor_parity.rebuild(lost, content, content[: self._block], self._ranks)
        return content

    def _look(self, most: int) -> tuple[list[int | None], list[str]]:
        """By generation, the version that is whole; and what is wrong with others."""
        found: list[int | None] = []
        wrong: list[str] = []
        for number in range(GENERATIONS):
            version, path = None, self._path(number)
            try:
                if path.exists():
                    check_size(path, self._size)
                    version = self._version(self._open(number), most)
            except (OSError, ValueError) as error:
                wrong.append(f"{path.name}: {error}")
            found.append(version)
        return found, wrong

    def _version(self, generation: _Generation, most: int) -> int | None:
        who = (self._ranks.index, self._ranks.size, self._layout)
        version = generation.content.version(*who)
        if version is None:
            return None
        if generation.parity is not None and generation.parity.version(*who) != version:
            raise ValueError("its parity is of another version")
        if version > most:
            generation.content.invalidate()
            raise ValueError(f"it is of version {version}, and the ledger has lost that: {most} is its newest")
        return version

    # ── where ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _path(self, number: int) -> Path:
        return self._folder / f"rank-{self._ranks.index}-{number}"

    def _open(self, number: int) -> _Generation:
        path = self._path(number)
        own = Segment(path.with_name(path.name + "-parity"), self._block) if self._block else None
        return _Generation(Segment(path, self._size), own)

    def _check_room(self) -> None:
        """What is there already is not asked for again. Raises `OSError`."""
        private_files.make(self._folder)
        there = sum(file.stat().st_size for file in self._folder.glob(f"rank-{self._ranks.index}-*"))
        needed = GENERATIONS * (self._size + self._block) - there
        free = min(psutil.virtual_memory().available, shutil.disk_usage(self._folder).free)
        if needed > _MEMORY_SHARE * free:
            raise OSError(f"{free / 2**20:.0f} MiB are free, of which {_MEMORY_SHARE:.0%} may be taken")


def _choose(held: Tensor, least: int) -> tuple[int | None, int | None]:
    """The newest of the versions [ranks, generations] that all ranks have, or all but one; and who lacks it."""
    for version in sorted({int(v) for v in held.flatten() if v >= least}, reverse=True):
        lacking = [rank for rank, versions in enumerate(held.tolist()) if version not in versions]
        if not lacking or (len(held) > 1 and len(lacking) == 1):
            return version, lacking[0] if lacking else None
    return None, None


def taken_by(trainer: Trainer, config: WorkerConfig) -> Snapshots | None:
    """None where the job is to do without."""
    if not config.settings.snapshot_every or not config.snapshots_root:
        return None
    return Snapshots(trainer, folder(Path(config.snapshots_root), config.job_id))


# ── the state, as a row of tensors ───────────────────────────────────────────────────────────────────────────────────


def _tensors(trainer: Trainer) -> list[Tensor]:
    """This rank's part of what is trained and of the optimizers' state, always in the same order; not copies."""
    found: list[Tensor] = []
    for _, model_optimizer in sorted(trainer.optimizers.items()):
        for group in model_optimizer.optimizer.param_groups:
            for parameter in group["params"]:
                state = model_optimizer.optimizer.state[parameter]
                found += [parameter, *(state[name] for name in sorted(state))]
    with torch.no_grad():
        return [t.to_local() if isinstance(t, DTensor) else t.detach() for t in found]


def _layout(trainer: Trainer) -> tuple[int, int]:
    """CRC-32 of shapes and types, and how many bytes the state takes, each tensor begun at a whole word."""
    tensors = [torch.get_rng_state(), *_tensors(trainer)]
    described = [f"{tuple(t.shape)} {t.dtype}" for t in tensors]
    return zlib.crc32("; ".join(described).encode()), sum(_padded_bytes(t) for t in tensors)


def _padded_bytes(tensor: Tensor) -> int:
    return -(-tensor.nbytes // WORD) * WORD


def _largest(size: int, ranks: ProcessGroup) -> int:
    sizes = torch.zeros(ranks.size, dtype=torch.int64)
    sizes[ranks.index] = size
    return int(ranks.sum(sizes).max())


def _copy(tensors: list[Tensor], generation: _Generation, ready: torch.cuda.Event | None) -> None:
    generation.content.invalidate()
    if generation.parity is not None:
        generation.parity.invalidate()
    places, at = [], 0
    for tensor in tensors:
        places.append(generation.content.content[at : at + tensor.nbytes])
        at += _padded_bytes(tensor)
    copy_out(tensors, places, ready)


@torch.no_grad()
def _write_back(content: Tensor, trainer: Trainer) -> None:
    at = 0
    random = torch.get_rng_state()
    for tensor in (random, *_tensors(trainer)):
        found = content[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        tensor.copy_(found)
        at += _padded_bytes(tensor)
    torch.set_rng_state(random)
