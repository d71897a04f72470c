"""Snapshots: the learner's state in shared memory of its node, which survives the death of the learner's process.

    torch's thread     … settle ─► begin ─► claim ─► forward, backward ─► (wait) ─► optimizer ─► settle ─► begin …
    snapshot's thread              └─► copy into generation g ────────────► │ ─► parity over ranks ─► seal g
                                                                            └ copied: the state may change

Between two updates the state is only read, so it is copied during the forward and backward passes; the update waits for
the copy only if the passes end first (counted in `stalled`). Idea: REFT (arXiv 2310.12670).

A generation is one of the two places of a rank that snapshots are written to in turn.

Invariants: after the first snapshot, at least one of the two generations is complete at any moment, whenever this
process is killed; only the state of settled steps is copied, so a snapshot is newer than the ledger only if the ledger
lost data, and such a snapshot is invalidated before it can be mistaken for the step that is trained in its place;
memory use is at most two generations, with N ranks and their parity 2 × N / (N − 1) times the state; what is restored
equals what was copied, bit for bit.

With several ranks, each stores its own shard on its node; if one rank has lost its shard, it is rebuilt from the others
(`xor_parity`).
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from headrace_core.protocols.worker import WorkerConfig
from headrace_core.storage import private_files
from headrace_core.storage.snapshot_folder import folder

from ..distributed.process_group import ProcessGroup
from ..training.trainer import Trainer
from . import xor_parity
from .shm_segment import Header, Segment, check_size
from .state_bytes import copy_to, layout, state_tensors, write_back

GENERATIONS = 2
_MAX_MEMORY_SHARE = 0.5
"""Snapshots take at most this fraction of the free memory of the machine and of the free space of the folder's file
system: the engine, the next step and three versions of published weights, which may be in the same place, need some."""


@dataclass(frozen=True, slots=True)
class Restored:
    """Result of `restore`."""

    version: int | None
    """The policy version that the trainer is at now; None: nothing was restored."""
    passed_over: tuple[str, ...]
    """Snapshots on this rank's node that cannot be used, each as "file name: reason"."""


@dataclass(frozen=True, slots=True)
class _Generation:
    content: Segment
    parity: Segment | None
    """None for a learner of one process."""


class Snapshots:
    """Snapshots of one rank's trainer.

    All ranks call `restore`, `begin` and `close` in the same order, from the thread that torch runs in.
    """

    def __init__(self, trainer: Trainer, place: Path) -> None:
        """`place`: the job's folder in this node's shared memory."""
        self._trainer, self._folder, self._ranks = trainer, place, trainer.ranks
        self._layout, size = layout(trainer)
        ranks = self._ranks.size
        self._block = xor_parity.block_size(_max_over_ranks(size, self._ranks), ranks) if ranks > 1 else 0
        self._size = self._block * (ranks - 1) if ranks > 1 else size
        self._generations: list[_Generation] | None = None
        self._next = 0
        self._thread = ThreadPoolExecutor(1, "snapshot")
        self._copied: Future[None] | None = None
        self._sealed: Future[None] | None = None
        self.stalled = 0.0
        """Total seconds that updates have waited for copies."""
        for model_optimizer in trainer.optimizers.values():
            model_optimizer.before_update = self.wait

    # ── write ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _reserve(self) -> str | None:
        """Reserve the memory. If any rank cannot, all return a reason and none takes snapshots."""
        wrong = None
        try:
            self._check_memory()
            self._generations = [self._open(number) for number in range(GENERATIONS)]
        except OSError as error:
            wrong = f"no memory for snapshots of {GENERATIONS * self._size / 2**20:.0f} MiB: {error}"
        failed = torch.tensor(float(wrong is not None))
        if not self._ranks.sum(failed):
            return None
        self._generations = None
        return wrong or "another rank of the learner has no memory for snapshots"

    def begin(self, version: int) -> str | None:
        """Start a snapshot of the current state, of policy `version`; waits only for an unfinished previous snapshot.

        The first call reserves the memory; if there is not enough, no snapshot is taken and the reason is returned.
        Raises the error of the previous snapshot if it failed.
        """
        if self._generations is None and (wrong := self._reserve()):
            return wrong
        assert self._generations is not None
        self.finish()
        generation = self._generations[self._next]
        self._next = (self._next + 1) % GENERATIONS
        tensors = state_tensors(self._trainer)
        ready = torch.cuda.current_stream().record_event() if self._trainer.policy.device.type == "cuda" else None
        self._copied = self._thread.submit(_copy, tensors, generation, ready)
        self._sealed = self._thread.submit(self._seal, generation, version, self._copied)
        return None

    def wait(self) -> None:
        """Wait until the state is copied and may change. Raises the copy's error if it failed."""
        if self._copied is not None:
            began = time.perf_counter()
            copied, self._copied = self._copied, None
            copied.result()
            self.stalled += time.perf_counter() - began

    def finish(self) -> None:
        """Wait until the snapshot under way is complete. Raises its error if it failed."""
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            sealed.result()

    def close(self) -> None:
        """Finish the last snapshot (raising its error if it failed) and end the thread. Idempotent."""
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

    def restore(self, min_version: int, max_version: int) -> Restored:
        """Restore the trainer to the newest version in [min_version, max_version] with a complete snapshot.

        Snapshots newer than `max_version`, the ledger's version, are invalidated.
        """
        versions, wrong = self._readable_versions(max_version)
        held = torch.zeros(self._ranks.size, GENERATIONS, dtype=torch.int64)  # 0: no snapshot
        held[self._ranks.index] = torch.tensor([0 if version is None else version for version in versions])
        version, lost = _choose(self._ranks.sum(held), max(min_version, 1))
        if version is None:
            return Restored(None, tuple(wrong))
        number = None if self._ranks.index == lost else versions.index(version)
        content = self._content(number, lost)
        write_back(content, self._trainer)
        # the next snapshot must not overwrite the generation that was just restored
        self._next = 0 if number is None else (number + 1) % GENERATIONS
        return Restored(version, tuple(wrong))

    def _content(self, number: int | None, lost: int | None) -> Tensor:
        """uint8 [size]: bytes of this rank's generation `number`, or, if None, rebuilt from the other ranks'.

        `lost`: the rank that has no snapshot of the version; all other ranks take part in rebuilding it.
        """
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

    def _readable_versions(self, max_version: int) -> tuple[list[int | None], list[str]]:
        """The version of each generation, None if it cannot be used; and the reasons of those that are damaged."""
        versions: list[int | None] = []
        wrong: list[str] = []
        for number in range(GENERATIONS):
            version, path = None, self._path(number)
            try:
                if path.exists():
                    check_size(path, self._size)
                    version = self._version(self._open(number), max_version)
            except (OSError, ValueError) as error:
                wrong.append(f"{path.name}: {error}")
            versions.append(version)
        return versions, wrong

    def _version(self, generation: _Generation, max_version: int) -> int | None:
        expected = (self._ranks.index, self._ranks.size, self._layout)
        version = generation.content.version(*expected)
        if version is None:
            return None
        if generation.parity is not None and generation.parity.version(*expected) != version:
            raise ValueError("its parity is of another version")
        if version > max_version:
            generation.content.invalidate()
            raise ValueError(f"it is of version {version}, and the ledger has lost that: {max_version} is its newest")
        return version

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _path(self, number: int) -> Path:
        return self._folder / f"rank-{self._ranks.index}-{number}"

    def _open(self, number: int) -> _Generation:
        path = self._path(number)
        parity = Segment(path.with_name(path.name + "-parity"), self._block) if self._block else None
        return _Generation(Segment(path, self._size), parity)

    def _check_memory(self) -> None:
        """Raises `OSError` if too little memory is free. Segments that exist already count as reserved."""
        private_files.make(self._folder)
        reserved = sum(file.stat().st_size for file in self._folder.glob(f"rank-{self._ranks.index}-*"))
        needed = GENERATIONS * (self._size + self._block) - reserved
        free = min(psutil.virtual_memory().available, shutil.disk_usage(self._folder).free)
        if needed > _MAX_MEMORY_SHARE * free:
            raise OSError(f"{free / 2**20:.0f} MiB are free, of which {_MAX_MEMORY_SHARE:.0%} may be taken")


def _choose(held: Tensor, min_version: int) -> tuple[int | None, int | None]:
    """(newest version that can be restored, rank that has to be rebuilt).

    `held` [ranks, generations]: the version that each rank has in each generation. All ranks or all but one must have
    the version: parity rebuilds at most one. The rank is None if all have it; both are None if no version will do.
    """
    for version in sorted({int(v) for v in held.flatten() if v >= min_version}, reverse=True):
        missing = [rank for rank, versions in enumerate(held.tolist()) if version not in versions]
        if not missing or (len(held) > 1 and len(missing) == 1):
            return version, missing[0] if missing else None
    return None, None


def _max_over_ranks(size: int, ranks: ProcessGroup) -> int:
    sizes = torch.zeros(ranks.size, dtype=torch.int64)
    sizes[ranks.index] = size
    return int(ranks.sum(sizes).max())


def _copy(tensors: list[Tensor], generation: _Generation, ready: torch.cuda.Event | None) -> None:
    """Copy the tensors' bytes into the generation, which is invalid until it is sealed."""
    generation.content.invalidate()
    if generation.parity is not None:
        generation.parity.invalidate()
    copy_to(generation.content.content, tensors, ready)


def snapshots_of(trainer: Trainer, config: WorkerConfig) -> Snapshots | None:
    """Snapshots of the trainer; None if the job's settings turn them off or the node has no place for them."""
    if not config.settings.snapshot_every or not config.snapshots_root:
        return None
    return Snapshots(trainer, folder(Path(config.snapshots_root), config.job_id))
