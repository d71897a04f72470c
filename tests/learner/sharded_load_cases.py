"""What ranks do in processes of their own for `test_sharded_load`: load, compute, and write down what they saw."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Qwen3Config

from headrace_learner.algorithms.batch import MicroBatch, build_step_batch
from headrace_learner.algorithms.presets import algorithm
from headrace_learner.distributed.fsdp import FsdpGroup
from headrace_learner.models.policy import Policy, PolicyNet
from headrace_learner.models.pretrained import build
from headrace_learner.optimizers.adamw import adamw
from headrace_learner.training.trainer import Trainer

from .cases import hyperparameters, random_group
from .rank_cases import joined


def a_batch() -> MicroBatch:
    (minibatch,) = build_step_batch(
        [random_group(i) for i in range(3)], 0, hyperparameters(token_budget=4096)
    ).minibatches
    return minibatch.micro_batches[0]


def load_all(index: int, size: int, address: tuple[str, int], folders: Path) -> None:
    """Every model folder in `folders`: <folder>-<rank>.json says which tensors are not those of `from_pretrained`, how
    many numbers are here, and <folder>-<rank>.safetensors has log-probabilities."""
    with joined(index, size, address) as ranks:
        for folder in sorted(path for path in folders.iterdir() if path.is_dir()):
            policy = Policy(folder, hyperparameters(), ranks)
            expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            here = [p for p in policy.model.parameters() if isinstance(p, DTensor)]
            seen = {
                "wrong": wrong(policy.model, expected),
                "whole": [n for n, p in policy.model.named_parameters() if not isinstance(p, DTensor)],
                "numbers": sum(p.to_local().numel() for p in here),
                "all": sum(p.numel() for p in expected.parameters()),
            }
            with torch.no_grad():
                logprobs = policy.logprobs(a_batch(), 0.8)
            folder.with_name(f"{folder.name}-{index}.json").write_text(json.dumps(seen))
            save_file({"logprobs": logprobs}, folder.with_name(f"{folder.name}-{index}.safetensors"))


def wrong(model: Any, expected: Any) -> list[str]:
    """Names of tensors and buffers that are not equal, bit for bit."""
    found = []
    for wanted, loaded in (
        (expected.state_dict(), model.state_dict()),
        (dict(expected.named_buffers()), dict(model.named_buffers())),
    ):
        assert wanted.keys() == loaded.keys()
        for name, tensor in loaded.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if not torch.equal(whole, wanted[name]):
                found.append(name)
    return found


# ── memory and precision ─────────────────────────────────────────────────────────────────────────────────────────────


class Allocated(TorchDispatchMode):
    """The most bytes that operations had allocated at once, but for those of the meta device. A file that is mapped
    into memory is allocated by no operation."""

    def __init__(self) -> None:
        super().__init__()
        self._live: set[StorageWeakRef] = set()
        self._given: set[StorageWeakRef] = set()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._given |= {_storage(tensor) for tensor in _tensors((args, kwargs))} - self._live
        found = func(*args, **(kwargs or {}))
        made = {_storage(tensor) for tensor in _tensors(found) if not tensor.is_meta} - self._given
        if not made <= self._live:
            self._live = {storage for storage in self._live | made if not storage.expired()}
            self.peak = max(self.peak, sum(map(_allocated, self._live)))
        return found


class Carried(TorchDispatchMode):
    """By collective, the precisions of the tensors that it carries."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[str]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.dtypes[func._schema.name] |= {str(tensor.dtype) for tensor in _tensors((args, kwargs))}
        return func(*args, **(kwargs or {}))


def _tensors(tree: Any) -> list[Tensor]:
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [leaf.to_local() if isinstance(leaf, DTensor) else leaf for leaf in leaves]


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _allocated(storage: StorageWeakRef) -> int:
    """Bytes as they are now: FSDP frees what it gathered by resizing it, and keeps the storage."""
    found = torch.UntypedStorage._new_with_weak_ptr(storage.cdata)
    return 0 if found is None else found.nbytes()


def observe(index: int, size: int, address: tuple[str, int], model: Path, folder: Path) -> None:
    """Load, with a reference and a critic, then train a step in bfloat16; see `test_sharded_load`."""
    with joined(index, size, address) as ranks:
        with Allocated() as loading:
            Policy(model, hyperparameters(), ranks)
        settings = hyperparameters(
            algorithm="ppo", learner_precision="bfloat16", kl_coefficient=0.1, learning_rate=1e-3, token_budget=64
        )
        autocast: set[bool] = set()
        trainer = Trainer(Policy(model, settings, ranks), algorithm("ppo"), settings)
        layer = trainer.policy.model.base_model.layers[0]
        layer.register_forward_hook(lambda *_: autocast.add(torch.is_autocast_enabled("cpu")))
        products: set[str] = set()
        layer.mlp.register_forward_hook(lambda _, given, made: products.update({str(given[0].dtype), str(made.dtype)}))
        with Carried() as training:
            trainer.step([random_group(i) for i in range(4)], 0)
        first = index == 0
        with Allocated() as publishing:
            Policy(model, hyperparameters(engine="vllm"), ranks).write_weights(folder if first else None)
        with Allocated() as exporting:
            Policy(model, hyperparameters(), ranks).write_model(folder / "exported" if first else None)
        seen = {
            "loading": loading.peak,
            "publishing": publishing.peak,
            "exporting": exporting.peak,
            "carried": {name: sorted(kinds) for name, kinds in training.dtypes.items()},
            "autocast": sorted(autocast),
            "products": sorted(products),
            "masters": sorted({str(t.dtype) for t in state_of(trainer)}),
        }
        (folder / f"observed-{index}.json").write_text(json.dumps(seen))


def state_of(trainer: Trainer) -> list[Tensor]:
    """Weights, gradients and optimizer state of all models that are trained."""
    found: list[Tensor] = []
    for each in trainer.optimizers.values():
        parameters = [p for p in each.model.parameters() if p.requires_grad]
        found += parameters + [p.grad for p in parameters if p.grad is not None]
        found += [t for state in each.optimizer.state.values() for t in state.values()]
    return found


# ── 32 billion parameters, without their memory ──────────────────────────────────────────────────────────────────────


def shard_32b(index: int, size: int, address: tuple[str, int], folder: Path) -> None:
    """Qwen3-32B in shards, as rank 0 of eight whose collectives do nothing; seen.json has the bytes of this rank."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    dist.new_group = lambda **_: dist.group.WORLD
    config = Qwen3Config(
        vocab_size=151936, hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=False,
    )  # fmt: skip
    config.save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    settings = hyperparameters(learner_ranks=8, gradient_checkpointing=True)
    net = PolicyNet(build(AutoModelForCausalLM, folder, True))
    FsdpGroup(0, 8, torch.device("cpu")).shard(net, torch.bfloat16)
    optimizer = adamw(net.model, settings)
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    seen = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "weights": sum(_bytes(p) for p in net.parameters()),
        "optimizer": sum(map(_bytes, moments)),
    }
    (folder / "seen.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def _bytes(tensor: Tensor) -> int:
    assert isinstance(tensor, DTensor)
    return tensor.to_local().nbytes
