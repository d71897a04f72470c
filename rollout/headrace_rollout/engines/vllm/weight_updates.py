"""Three ways to put a new version into a running vLLM model. Each has a long `stage` and a short `commit`.

    staging thread:  read safetensors ─► prepare ─┐            (generation goes on)
    worker thread :  step │ step │ step │ commit ◄┘ │ step …   (the pause is `commit` alone)

* `ShadowWeights` (CPU). vLLM's CPU linear layers pack their weights into oneDNN handlers after loading and drop the
  plain parameter, so that new weights can neither be loaded into a running model nor be packed quickly (a reload of
  540 MB takes 0.5 to 1.1 s, almost all of it packing). So the staging thread loads and packs a second instance of the
  model, and `commit` swaps storage pointers and handlers module by module and copies nothing.
* `StagedWeights` (accelerators). The staging thread copies the checkpoint onto the device if it fits beside the
  model, and else into the page cache; `commit` runs vLLM's own in-place reload from there, which keeps all addresses
  that captured graphs refer to.
* `AdapterSlot` (accelerators, if versions are adapters). The staging thread reads the adapter; `commit` copies it into
  the one slot of vLLM's LoRA layers that every request runs through. The base model never changes.

The first two accept adapters as well as full weights: they merge adapters while staging (`weight_files`).

Under tensor parallelism each rank has a switch of its own. All read the same folder, and vLLM's loaders take the rank's
part of each tensor: from mapped files, a rank copies no more than its shard. The engine commits once all have staged.

Invariants: `commit` applies all of the last staged version; if nothing is staged, it raises and changes nothing. A
version that lacks a tensor is refused at staging. Memory of replaced weights is freed after the commit, by another
thread, because unmapping 540 MB takes as long as copying it.

Peak memory. `ShadowWeights`: while staging, the live packed weights, the new plain ones and the new packed ones (about
3 × the weights); between updates, 1 ×. `StagedWeights`: the rank's shard of the model and the whole version; or the
shard alone, with a longer pause, in which it is copied from the host. `AdapterSlot`: 1 ×, and three times the adapter.
"""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from headrace_core.errors import WeightsDamaged

from ..weight_files import Adapter, BaseModel, is_adapter


class WeightSwitch(Protocol):
    """What the worker extension uses: `stage` runs on the staging thread, `commit` between two steps on the
    worker's."""

    def stage(self, folder: Path) -> None:
        """Read and prepare the version in `folder`. Raises `WeightsDamaged`."""
        ...

    def commit(self) -> None:
        """Apply the staged version. Raises RuntimeError if nothing is staged."""
        ...


class _ShadowParameter:
    """One parameter of the shadow model as its constructor made it, with its loader attributes.

    Packing replaces the parameter in its module, so that each staging first puts this one back, with new storage.
    """

    def __init__(self, module: nn.Module, attribute: str, parameter: nn.Parameter) -> None:
        self.module = module
        self.attribute = attribute
        self.parameter = parameter
        self.shape = parameter.shape

    def open(self) -> None:
        if self.parameter.numel() == 0:
            self.parameter.data = torch.empty(self.shape, dtype=self.parameter.dtype)
        self.module._parameters[self.attribute] = self.parameter

    def drop_if_packed(self) -> None:
        if self.module._parameters[self.attribute] is not self.parameter:
            self.release()

    def release(self) -> None:
        self.parameter.data = torch.empty(0, dtype=self.parameter.dtype)


class ShadowWeights:
    """See the module. Construct it while no request runs: the constructor initialises a second model."""

    def __init__(self, live: Any, vllm_config: Any) -> None:
        self._model_config = vllm_config.model_config
        if self._model_config.word_embeddings_untied_by_checkpoint:
            raise ValueError("the config ties the embeddings, but the checkpoint stores lm_head too; save it without")
        self._base = BaseModel(Path(self._model_config.model))
        self._shadow = _second_instance(vllm_config)
        self._pairs = list(zip(live.modules(), self._shadow.modules(), strict=True))
        self._slots = [
            _ShadowParameter(module, attribute, parameter)
            for module in self._shadow.modules()
            for attribute, parameter in module._parameters.items()
            if parameter is not None
        ]
        for slot in self._slots:
            slot.release()
        self._staged = False

    def stage(self, folder: Path) -> None:
        """Load and pack `folder` into the shadow model. Raises `WeightsDamaged` if it lacks a tensor."""
        self._staged = False
        try:
            self._load_and_pack(folder)
        except BaseException:
            for slot in self._slots:
                slot.release()
            raise
        self._staged = True

    def _load_and_pack(self, folder: Path) -> None:
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        self._base.require_whole(folder)
        for slot in self._slots:
            slot.open()
        self._shadow.load_weights(self._base.read(folder))
        process_weights_after_loading(self._shadow, self._model_config, torch.device("cpu"))
        for slot in self._slots:
            slot.drop_if_packed()

    def commit(self) -> None:
        """Swap the storage of all parameters and all packed handlers with the running model's; copies nothing."""
        if not self._staged:
            raise RuntimeError("no weights are staged")
        retired: list[Any] = []
        swapped: set[int] = set()
        for live, shadow in self._pairs:
            if "cpu_linear" in vars(shadow):
                retired.append(live.cpu_linear)
                live.cpu_linear, shadow.cpu_linear = shadow.cpu_linear, None
            for attribute, new in shadow._parameters.items():
                old = live._parameters[attribute]
                if new is None or old is None or new.numel() == 0 or id(new) in swapped:
                    continue
                swapped.add(id(new))
                retired.append(old.data)
                old.data = new.data
        for slot in self._slots:
            slot.release()
        self._staged = False
        threading.Thread(target=retired.clear, name="headrace-retire-weights").start()


def _second_instance(vllm_config: Any) -> Any:
    """A model like the running one. Its attention layers register in a separate context, because names must be
    unique."""
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = copy.copy(vllm_config)
    config.compilation_config = copy.copy(vllm_config.compilation_config)
    config.compilation_config.static_forward_context = {}
    with set_default_torch_dtype(config.model_config.dtype):
        return initialize_model(vllm_config=config, model_config=config.model_config).eval()


FREE_BYTES = 2**30
"""Device memory that staged weights leave free, for what the running model allocates beyond its plan."""
_PAGE_BYTES = 4096


class StagedWeights:
    """See the module. For accelerators; on a CPU it would be correct, but slow."""

    def __init__(self, runner: Any, vllm_config: Any, device: torch.device) -> None:
        self._runner = runner
        self._vllm_config = vllm_config
        self._base = BaseModel(Path(runner.model_config.model))
        self._device = device
        self._staged: list[tuple[str, torch.Tensor]] = []

    def stage(self, folder: Path) -> None:
        """Read `folder` onto the device, or into the page cache. Raises `WeightsDamaged` if it lacks a tensor."""
        self._staged = []  # a version that was staged and not committed makes room
        self._base.require_whole(folder)
        where = staging_device(self._base.size(folder), self._free(), self._device)
        self._staged = list(self._base.read(folder, str(where)))
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        elif where != self._device:
            for _, tensor in self._staged:
                _read_pages(tensor)

    def _free(self) -> int | None:
        """Free bytes of the device; None: unknown."""
        return torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else None

    def commit(self) -> None:
        """Load the staged tensors into the running model in place; each rank takes its part of them."""
        from vllm.config import set_current_vllm_config

        if not self._staged:
            raise RuntimeError("no weights are staged")
        staged, self._staged = self._staged, []
        with set_current_vllm_config(self._vllm_config):  # quantized layers look it up while they are packed again
            self._runner.reload_weights(weights_iterator=iter(staged))


def staging_device(needed: int, free: int | None, device: torch.device) -> torch.device:
    """Where to stage `needed` bytes: on the device if they fit into its `free` bytes (None: unknown, taken to be
    enough), and else on the host, from where a pause is longer, but needs no memory of the device."""
    return device if free is None or needed + FREE_BYTES <= free else torch.device("cpu")


def _read_pages(tensor: torch.Tensor) -> None:
    """Read one byte of each page of a memory-mapped tensor, so that a commit waits for no disk."""
    tensor.contiguous().view(-1).view(torch.uint8)[::_PAGE_BYTES].sum()


SLOT = 1
"""vLLM's id of the adapter: the same for all versions, because a request keeps the id that it was submitted with."""


def slot_request(model: Path) -> Any:
    """The LoRA request to submit with every request, so that it runs through the slot. vLLM never reads the folder,
    because the slot always holds an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest("policy", SLOT, str(model))


class AdapterSlot:
    """See the module. Construct it before the first request. Until the first commit the adapter is zero."""

    def __init__(self, runner: Any) -> None:
        self._loader = runner.lora_manager
        self._slots = self._loader._adapter_manager
        self._staged: Any = None
        embeddings = runner.get_model().embedding_modules
        self._fill(self._slots.create_dummy_lora(SLOT, 1, embeddings))  # all zeros

    def stage(self, folder: Path) -> None:
        """Read the adapter in `folder`. Raises `WeightsDamaged` unless it is a complete adapter, or vLLM's
        ValueError."""
        self._staged = None
        if not is_adapter(folder):
            raise WeightsDamaged(f"{folder} holds whole weights; this engine was started for adapters")
        Adapter(folder)  # checks the adapter, because vLLM accepts one with a missing factor
        self._staged = self._loader._load_adapter(slot_request(folder))

    def commit(self) -> None:
        """Copy the staged adapter into the slot, whose addresses captured graphs refer to."""
        if self._staged is None:
            raise RuntimeError("no adapter is staged")
        staged, self._staged = self._staged, None
        self._fill(staged)

    def _fill(self, adapter: Any) -> None:
        self._slots.remove_adapter(SLOT)
        self._slots.add_adapter(adapter)
        self._slots.activate_adapter(SLOT)
