"""Which tensors of a model's files make which of its parameters, by the library's model without its weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


def own_config(folder: Path) -> Any:
    """The configuration of a model folder, with transformers' own attention: a config.json may name an implementation
    that would be downloaded as code."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    for part in (config, config.get_text_config()):
        part._attn_implementation = None
    return config


def model_without_weights(folder: Path) -> Any:
    """The library's model of a folder, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(own_config(folder))


def files_of_parameters(folder: Path, names: Iterable[str]) -> list[list[set[str]]]:
    """For each parameter of the model in `folder`, the sets of `names` of tensors that make it.

    A set has several names where the library joins tensors, as the experts of a layer. There are several sets where two
    matrices are tied and the files hold both. Names of tensors that the model does not have are in none.
    """
    model = model_without_weights(folder)
    parameters = model.state_dict(keep_vars=True)
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    found: defaultdict[int, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        target, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if target not in parameters:  # the stored name may be that of the model already, except for the prefix
            target, _ = rename_source_key(name, [], [], model.base_model_prefix, parameters)
        if target in parameters:
            found[id(parameters[target])][target].add(name)
    return [list(sets.values()) for sets in found.values()]
