"""`headrace plan`: the memory that a job file's job would take, before it is submitted; a table, or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from headrace_core.errors import InvalidData, InvalidRequest

from .common import AsJson, out, print_json, service_settings

if TYPE_CHECKING:
    from headrace_core.config.hyperparameters import Hyperparameters
    from headrace_core.planning.devices import Devices
    from headrace_core.planning.memory_plan import MemoryPlan
    from headrace_core.planning.model_shape import ModelShape

    from ..models.catalog import Model

command = typer.Typer(add_completion=False, rich_markup_mode=None)
_GIB, _MIB = 2**30, 2**20


@command.command()
def plan(
    job: Annotated[Path, typer.Argument(help="The job file, in TOML.")],
    gpus: Annotated[
        int | None, typer.Option(min=0, max=100_000, help="GPUs to plan for; 0: a machine without.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="GiB of each GPU, or of the machine without GPUs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the memory that a job takes, part by part. Exit code 1 if it does not fit.

    The devices are this machine's, if --gpus and --memory name no others. Defaults that do not fit are replaced by ones
    that do; what the job file sets stays. Nothing is loaded: the model's config.json is enough.
    """
    from headrace_core.planning.fitting import fitted

    shape, settings, devices = _inputs(job, gpus, memory)
    _, memory_plan = fitted(shape, settings, devices)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(memory_plan))
    else:
        _show(memory_plan, devices)


def _inputs(file: Path, gpus: int | None, memory: float | None) -> tuple[ModelShape, Hyperparameters, Devices]:
    """Raises `InvalidRequest` or `InvalidData`, which name what to change."""
    from pydantic import ValidationError

    from headrace_core.config.hyperparameters import Hyperparameters
    from headrace_core.planning.model_shape import model_shape

    from ..models.model_folder import json_of
    from ..models.model_support import check_splittable
    from . import job_file

    body = job_file.read(file).body
    model = _model(str(body["model"]))
    shape = model_shape(json_of(model.path / "config.json"))
    if shape is None:
        raise InvalidRequest(f"{model.name}: there is no plan for a model of its family", param="model")
    try:
        settings = Hyperparameters.model_validate(body["method"]["reinforcement"]["hyperparameters"])
    except ValidationError as errors:
        first = errors.errors()[0]
        name = ".".join(map(str, first["loc"])) or "hyperparameters"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidData(f"{file}: {name}: {message}", param=name) from errors
    check_splittable(model.path, settings.tensor_parallel_size, "tensor_parallel_size")
    context = model.context_for(settings, "max_context")
    return shape, settings.model_copy(update={"max_context": context}), _devices(gpus, memory)


def _model(name: str) -> Model:
    """A base model by name, or the model at a path. What a job trained is known to its gateway alone."""
    from ..models.catalog import base_models, model_at

    known = {each.name: each for each in base_models(service_settings().models_dir)}
    model = known.get(name) or model_at(Path(name))
    if model is None:
        raise InvalidRequest(f"no base model {name!r:.200}, nor a folder with a config.json", param="model")
    return model


def _devices(gpus: int | None, memory: float | None) -> Devices:
    from headrace_core.planning.devices import Devices

    from ..operations.cache_memory import main_memory
    from ..operations.own_devices import own_devices

    if gpus and memory is None:
        raise InvalidRequest("name the memory of each GPU, too: --memory 80", param="memory")
    own = Devices(max(1, gpus), main_memory(), gpus > 0) if gpus is not None else own_devices()
    if own is None:
        raise InvalidRequest("nvidia-smi does not say what GPUs there are: name --gpus and --memory", param="gpus")
    return own if memory is None else Devices(own.count, int(memory * _GIB), own.gpu)


# ── shown ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _show(job_plan: MemoryPlan, devices: Devices) -> None:
    out.print(
        f"{_count(job_plan.parameters)} parameters, {_count(job_plan.trained)} trained; {devices}", soft_wrap=True
    )
    for device in job_plan.devices:
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(overflow="fold")
        table.add_column(justify="right", no_wrap=True)
        for name, size in device.parts.items():
            table.add_row(escape(name), size_text(size))
        table.add_row("[bold]together[/]", f"[bold]{size_text(device.total)}[/]")
        table.add_row("usable", size_text(device.usable))
        each = "" if device.devices == 1 else f" ({device.devices} devices, each)"
        out.print(f"\n[bold]{escape(device.processes)}[/]{each}", soft_wrap=True)
        out.print(table)
    out.print()
    for line in _notes(job_plan):
        out.print(escape(line), soft_wrap=True, highlight=False)


def _notes(job_plan: MemoryPlan) -> Iterator[str]:
    yield f"KV cache: {job_plan.kv_cache_tokens:,} tokens a rollout worker"
    if any(device.stages_on_host for device in job_plan.devices):
        yield "new weights: staged on the host, because they do not fit beside the engine"
    for name, size in job_plan.host.items():
        yield f"shared memory, {name}: at most {size_text(size)}"
    for name, value in job_plan.chosen.items():
        yield f"chosen: {name} = {_toml(value)}"


def size_text(size: int) -> str:
    """In GiB, or MiB where that would be 0."""
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB / 10 else f"{size / _MIB:,.1f} MiB"


def _count(numbers: int) -> str:
    for unit, name in ((10**9, " billion"), (10**6, " million"), (10**3, " thousand")):
        if numbers >= unit:
            return f"{numbers / unit:.3g}{name}"
    return str(numbers)


def _toml(value: Any) -> str:
    return str(value).lower()
