"""The memory plan of a job at submission: defaults that fit this machine, or a refusal that says what would fit.

It knows the devices of the single machine of an embedded Ray. Of other nodes Ray tells no memory of GPUs: there is no
plan then, nor for a model whose family the planner does not know, and the engine reports too large a cache when it
starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest
from headrace_core.planning.devices import Devices
from headrace_core.planning.fitting import fitted
from headrace_core.planning.memory_plan import MemoryPlan
from headrace_core.planning.model_shape import model_shape

from ..models.model_folder import json_of
from .own_devices import own_devices
from .remarks import Remark


def planned(
    model: Path,
    job: Hyperparameters,
    given: Collection[str],
    service: Settings,
    param: str,
    devices: Callable[[], Devices | None] = own_devices,
) -> tuple[Hyperparameters, MemoryPlan | None]:
    """The settings with defaults that fit, and their plan; as they are, and None, where none can be made.

    `given`: the settings that the user chose, which stay. Raises `InvalidRequest` for a job that cannot fit; its
    `param` is `param` and the setting's name. Blocks.
    """
    if (service.ray_address or os.environ.get("RAY_ADDRESS")) is not None:
        return job, None
    shape, found = model_shape(json_of(model / "config.json")), devices()
    if shape is None or found is None:
        return job, None
    try:
        return fitted(shape, job, found, given)
    except InvalidRequest as error:
        place = error.param if error.param == "model" else f"{param}.{error.param}"
        raise InvalidRequest(error.message, param=place) from error


def chosen(plan: MemoryPlan | None) -> list[Remark]:
    """What to tell the user of defaults that the plan replaced."""
    changed = {} if plan is None else plan.chosen
    return [
        ("info", f"{name} is {str(value).lower()}: so the job fits the machine's memory")
        for name, value in changed.items()
    ]
