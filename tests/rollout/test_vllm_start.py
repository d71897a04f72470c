"""What vLLM is told of a model, by its folder alone; the engine itself is in test_engines and test_vllm_life."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace_rollout.engines.engine import EngineConfig
from headrace_rollout.engines.vllm import launch


def folder(path: Path, config: dict[str, object]) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_model_of_text_and_pictures_has_the_vocabulary_of_its_text_model(tmp_path: Path) -> None:
    """As published ones are: the text model's settings lie within, and those at their defaults are not written."""
    text = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    nested = folder(tmp_path, {"model_type": "gemma3", "text_config": text})
    assert launch.text_settings(nested).vocab_size == 262_208
    lengths = [launch.context_length(EngineConfig(nested, max_model_len=longest)) for longest in (511, 512)]
    assert lengths == [512, 512], "one more than asked for, which a scoring samples, but no more than the model knows"


def test_positions_that_config_json_leaves_at_their_default_bound_the_context(tmp_path: Path) -> None:
    plain = folder(tmp_path, {"model_type": "gpt2"})
    assert launch.context_length(EngineConfig(plain, max_model_len=1024)) == 1024


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        launch.text_settings(tmp_path)
