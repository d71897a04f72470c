"""Settings with which a job fits its devices: which defaults to replace, and what a refusal proposes.

    settings, devices ─► fitted   defaults changed, the cheapest first, until `memory_plan` fits;
                                  else `InvalidRequest`, with the setting and the number that would do

Invariants: a setting that the user gave is never changed; settings that fit as they are stay as they are, but for the
KV cache of a GPU, which is given what is left when the next version of the weights is staged beside it. Where so little
is left that few completions would run at once, the version is staged on the host.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ..config.generation_settings import DEFAULT_CACHE_GIB, MIN_CACHE_GIB
from ..config.hyperparameters import Hyperparameters
from ..errors import InvalidRequest
from .devices import Devices, loads
from .memory_plan import DeviceMemory, MemoryPlan, filled_device, memory_plan, without_staging
from .model_shape import ModelShape
from .rollout_memory import GIB, staged_on_host, token_bytes

_MAX_DEVICES = 1024
_CACHE_STEP = 0.25
"""GiB that a chosen cache is a multiple of."""
_MIN_SHARE = 0.25
"""Of the tokens of max_running completions: what a cache beside a staged version holds at least."""
_MANY_RANKS = 16
"""From here on, numbers of ranks are tried in doublings."""

Change = Mapping[str, Any]
"""Settings by name, with the values that they would have."""


def fitted(
    model: ModelShape, settings: Hyperparameters, devices: Devices, given: Collection[str] | None = None
) -> tuple[Hyperparameters, MemoryPlan]:
    """The settings with defaults that fit, and their plan. Raises `InvalidRequest`, which names what would fit.

    `given`: the settings that the user chose; None: all that are set.
    """
    fixed = settings.model_fields_set if given is None else given
    sized = devices.gpu and not {"kv_cache_gib", "gpu_memory_utilization"} & set(fixed)
    small = settings.model_copy(update={"kv_cache_gib": DEFAULT_CACHE_GIB}) if sized else settings
    for change in _changes(model, small, devices, fixed):
        made = _planned(model, small, change, devices)
        if made is not None and made.fits:
            changed = small.model_copy(update=dict(change))
            if sized:
                changed = changed.model_copy(update={"kv_cache_gib": _largest_cache(model, changed, devices)})
            plan = memory_plan(model, changed, devices)
            return changed, msgspec.structs.replace(plan, chosen=_differences(settings, changed))
    raise _refusal(model, small, devices)


# ── what would fit ───────────────────────────────────────────────────────────────────────────────────────────────────


def _changes(
    model: ModelShape, settings: Hyperparameters, devices: Devices, fixed: Collection[str]
) -> Iterator[Change]:
    """Changes of settings that are not `fixed`, the least costly first; the first changes nothing."""
    options: dict[str, Sequence[Any]] = {
        "tensor_parallel_size": _more_parts(model, settings, devices),
        "learner_ranks": _more_ranks(settings, devices),
        "kv_cache_gib": _smaller_caches(model, settings, devices.gpu),
        "token_budget": _smaller_budgets(settings),
        "gradient_checkpointing": [settings.gradient_checkpointing, True],
    }
    allowed = [values if name not in fixed else values[:1] for name, values in options.items()]
    for values in itertools.product(*allowed):
        change = dict(zip(options, values, strict=True))
        yield {name: value for name, value in change.items() if value != getattr(settings, name)}


def _more_ranks(settings: Hyperparameters, devices: Devices) -> list[int]:
    """GPUs that no process has yet may hold a rank each; on CPUs, more ranks are more processes in the same memory."""
    now = settings.learner_ranks
    if not devices.gpu or settings.optimizer != "adamw":
        return [now]
    most = devices.count - settings.rollout_workers * settings.tensor_parallel_size
    few = range(now + 1, min(most, _MANY_RANKS) + 1)
    doubled = itertools.takewhile(lambda ranks: ranks < most, (_MANY_RANKS << step for step in itertools.count(1)))
    many = [ranks for ranks in (*doubled, most) if ranks > max(now, _MANY_RANKS)]
    return [now, *few, *many]


def _more_parts(model: ModelShape, settings: Hyperparameters, devices: Devices) -> list[int]:
    """Numbers of GPUs that an engine's weights may be split over: doublings that divide the model's heads."""
    now = settings.tensor_parallel_size
    if not devices.gpu or settings.engine != "vllm":
        return [now]
    splits = (n for n in (2, 4, 8) if now < n <= devices.count and model.divisible_by(n))
    return [now, *splits]


def _smaller_caches(model: ModelShape, settings: Hyperparameters, gpu: bool) -> list[float | None]:
    """The cache as it is, then halved, as long as it holds two requests of the longest context."""
    now = settings.kv_cache_gib
    if now is None and gpu:  # what the engine leaves of its share
        return [None]
    least = max(MIN_CACHE_GIB, 2 * settings.max_context * token_bytes(model, settings, gpu) / GIB)
    sizes, size = [now], DEFAULT_CACHE_GIB if now is None else now
    while (size := size / 2) >= least:
        sizes.append(size)
    return sizes


def _smaller_budgets(settings: Hyperparameters) -> list[int]:
    """The budget as it is, then halved, down to one sequence of the longest context."""
    least, budgets = max(64, settings.max_context), [settings.token_budget]
    while budgets[-1] // 2 >= least:
        budgets.append(budgets[-1] // 2)
    return budgets if budgets[-1] <= least else [*budgets, least]


def _planned(model: ModelShape, settings: Hyperparameters, change: Change, devices: Devices) -> MemoryPlan | None:
    """None where the devices are too few."""
    try:
        return memory_plan(model, settings.model_copy(update=dict(change)), devices)
    except InvalidRequest:
        return None


def _largest_cache(model: ModelShape, settings: Hyperparameters, devices: Devices) -> float:
    """GiB: what the fullest device of a rollout worker has left, up to what all its requests can fill."""
    now = settings.kv_cache_gib or DEFAULT_CACHE_GIB
    wanted = settings.max_running * settings.max_context * token_bytes(model, settings, devices.gpu) / GIB
    filled = [(load.workers, filled_device(model, settings, devices, load)) for load in loads(settings, devices)]
    filled = [(workers, device) for workers, device in filled if workers]
    most = now + min((device.usable - device.total) / workers for workers, device in filled) / GIB
    if most < _MIN_SHARE * wanted and staged_on_host(settings, devices.gpu):
        without = [(workers, without_staging(device)) for workers, device in filled]
        most = now + min((device.usable - device.total) / workers for workers, device in without) / GIB
    return max(now, min(most, wanted) // _CACHE_STEP * _CACHE_STEP)


def _differences(before: Hyperparameters, after: Hyperparameters) -> dict[str, Any]:
    old, new = before.model_dump(), after.model_dump()
    return {name: value for name, value in new.items() if value != old[name]}


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _refusal(model: ModelShape, settings: Hyperparameters, devices: Devices) -> InvalidRequest:
    """Raises `InvalidRequest` itself where the GPUs are too few for the processes."""
    whole = memory_plan(model, settings, devices)
    over = [_excess(device) for device in whole.devices if not device.fits]
    setting, more = _setting(model, settings, devices), None
    if setting is None or "lora_rank" in setting[0]:  # adapters are not what was asked for
        more = _more_devices(model, settings, devices)
    remedies = [r for r in (setting, more) if r] or [(_least(model, settings, devices), "model")]
    advice = ", or ".join(remedy for remedy, _ in remedies)
    message = f"the job does not fit on {devices}: {'; '.join(over)}. {advice[0].upper()}{advice[1:]}"
    return InvalidRequest(message, param=remedies[0][1])


def _excess(device: DeviceMemory) -> str:
    largest = max(device.parts, key=device.parts.__getitem__)
    return (
        f"{device.processes} would need {_gib(device.total)} on one device, {_gib(device.parts[largest])} of them for "
        f"{largest}, and {_gib(device.usable)} are usable"
    )


def _setting(model: ModelShape, settings: Hyperparameters, devices: Devices) -> tuple[str, str] | None:
    """(what would fit on these devices, the first setting that it names): a single setting where one suffices."""
    changes = [c for c in _changes(model, settings, devices, fixed=()) if c]
    if settings.lora_rank is None and settings.optimizer == "adamw":
        changes.append({"lora_rank": 16})
        changes += [{**c, "lora_rank": 16} for c in changes[:-1]]
    for change in sorted(changes, key=len):
        made = _planned(model, settings, change, devices)
        if made is not None and made.fits:
            values = " and ".join(f"{name} to {_value(value)}" for name, value in change.items())
            return f"set {values}", next(iter(change))
    return None


def _sparing(settings: Hyperparameters) -> Hyperparameters:
    """With the learner's least, of what does not change what is trained."""
    least = {"gradient_checkpointing": True, "token_budget": _smaller_budgets(settings)[-1]}
    return settings.model_copy(update=least)


def _more_devices(model: ModelShape, settings: Hyperparameters, devices: Devices) -> tuple[str, str] | None:
    """How many GPUs like these would do."""
    if not devices.gpu or settings.optimizer != "adamw" or devices.count >= _MAX_DEVICES:
        return None
    changed = _sparing(settings)
    of_engines = settings.rollout_workers * settings.tensor_parallel_size

    def fits(count: int) -> bool:
        ranks = {"learner_ranks": max(1, count - of_engines)}
        made = _planned(model, changed, ranks, Devices(count, devices.memory, devices.gpu))
        return made is not None and made.fits

    if not fits(_MAX_DEVICES):
        return None
    count = bisect_left(range(_MAX_DEVICES + 1), True, lo=devices.count + 1, key=fits)
    ranks = max(1, count - of_engines)
    values = f"learner_ranks {ranks}, gradient_checkpointing true and token_budget {changed.token_budget}"
    return f"take {count} such GPUs with {values}", "learner_ranks"


def _least(model: ModelShape, settings: Hyperparameters, devices: Devices) -> str:
    cache = _smaller_caches(model, settings, devices.gpu)[-1]
    plan = memory_plan(model, _sparing(settings).model_copy(update={"kv_cache_gib": cache}), devices)
    needed = max(device.total for device in plan.devices) * devices.memory / devices.usable
    return f"at the least it needs {_gib(int(needed))} a device: take a smaller model, or larger devices"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB"
