"""The decoder on real tiny models: whatever shares the batch, each completion is what a plain forward pass says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3ForCausalLM

from headrace_core.errors import WeightsDamaged
from headrace_lab.training.tiny_models import qwen3_config
from headrace_rollout.engines.engine import EngineConfig, EngineFailure, Sampled, SamplingConfig
from headrace_rollout.engines.transformers import policy_model
from headrace_rollout.engines.transformers.batch_slots import Generation
from headrace_rollout.engines.transformers.decoder import Decoder
from headrace_rollout.engines.transformers.policy_model import PolicyModel

from .tiny_model import EOS, VOCABULARY, next_token_logprobs, of_tokens, save, tiny_model

TOKEN_BYTES = 2 * 2 * 32 * 4
"""Keys and values · layers · width of the one key-value head · float32."""


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def llama(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=[EOS, 2],
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).float().eval()


def decoder(folder: Path, max_running: int = 5, **settings: Any) -> Decoder:
    config = EngineConfig(folder, max_model_len=128, max_running=max_running, **settings)
    return Decoder(PolicyModel(config), config)


def requests(count: int, seed: int = 0, **sampling: Any) -> list[Generation]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt = random.integers(3, VOCABULARY, random.integers(1, 20)).astype(np.int32)
        made.append(Generation(prompt, SamplingConfig(int(random.integers(1, 60)), **sampling)))
    return made


def finish(engine: Decoder) -> None:
    for _ in range(1000):
        engine.admit()
        engine.step()
        if not engine.running and not engine.waiting:
            return
    raise AssertionError("requests did not end within 1000 steps")


def assert_plain(model: Any, request: Generation, sampled: Sampled, start: int = 0) -> None:
    """The log-probabilities of tokens `start` … of the completion are those of a plain forward pass of `model`."""
    tokens = np.concatenate([request.prompt, sampled.token_ids])
    sampling = request.sampling
    plain = next_token_logprobs(model, tokens, sampling.temperature or 1.0, sampling.top_p)
    expected = of_tokens(plain, tokens, len(request.prompt) + start)
    np.testing.assert_allclose(sampled.logprobs[start:], expected, atol=1e-4)


@pytest.mark.parametrize("make", [tiny_model, llama])
@pytest.mark.parametrize("pass_tokens", [policy_model.PASS_TOKENS, 30])
def test_completions_are_those_of_a_plain_forward_under_churn(
    make: Any, pass_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_model, "PASS_TOKENS", pass_tokens)
    model = make(0)
    engine = decoder(save(model, tmp_path))
    made = requests(12, 1) + requests(12, 2, temperature=0.7, top_p=0.8) + requests(6, 3, temperature=0.0)
    made += [Generation(made[0].prompt, SamplingConfig(9)) for _ in range(4)]  # a group: one prompt, many completions
    for each in made:
        engine.accept(each)
    finish(engine)
    for each in made:
        sampled = each.future.result(timeout=0)
        assert_plain(model, each, sampled)
        ends = sampled.token_ids[-1] in engine.model.stop_ids
        assert sampled.finish_reason == ("stop" if ends else "length")
        assert ends or len(sampled.token_ids) == each.sampling.max_tokens


def test_a_seeded_request_samples_alike_alone_and_in_a_crowd(tmp_path: Path) -> None:
    folder = save(tiny_model(0), tmp_path)
    alone, crowded = (Generation(np.arange(3, 9, dtype=np.int32), SamplingConfig(40, seed=11)) for _ in range(2))
    for each, company in ((alone, []), (crowded, requests(7))):
        engine = decoder(folder)
        for other in [*company, each]:
            engine.accept(other)
        finish(engine)
    assert alone.future.result(0).token_ids.tolist() == crowded.future.result(0).token_ids.tolist()


def test_the_cache_stays_within_its_budget(tmp_path: Path) -> None:
    engine = decoder(save(tiny_model(0), tmp_path), max_running=32, kv_cache_gib=200 * TOKEN_BYTES / 2**30)
    made = requests(20)
    for each in made:
        engine.accept(each)
    seen = 0
    while engine.running or engine.waiting:
        engine.admit()
        layer = engine.model.cache.layers[0]
        assert layer.keys.shape[0] * layer.keys.shape[2] <= 200
        seen = max(seen, engine.running)
        engine.step()
    assert seen > 1
    assert all(each.future.done() for each in made)


def test_a_budget_below_one_request_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(
        EngineFailure, match="holds 100 tokens, less than one request of max_context 128: raise kv_cache_gib"
    ):
        decoder(save(tiny_model(0), tmp_path), kv_cache_gib=100 * TOKEN_BYTES / 2**30)


def test_a_context_beyond_the_models_positions_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match="knows 65 positions, less than max_context 128: lower it"):
        decoder(save(tiny_model(0, context=64), tmp_path))


def test_sliding_windows_shorter_than_the_context_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    config = qwen3_config(VOCABULARY, 64, context=256, **window)
    with torch.inference_mode(False):
        save(Qwen3ForCausalLM(config), tmp_path)
    with pytest.raises(EngineFailure, match="not that of full attention"):
        decoder(tmp_path)


def test_cancelling_frees_the_row_and_leaves_the_others_alone(tmp_path: Path) -> None:
    model = tiny_model(0)
    engine = decoder(save(model, tmp_path), max_running=3)
    made = [Generation(np.array([3 + index], np.int32), SamplingConfig(40, seed=index)) for index in range(5)]
    for each in made:
        engine.accept(each)
    engine.admit()
    engine.step()
    assert (engine.running, engine.waiting) == (3, 2)
    engine.cancel(made[0])
    engine.cancel(made[4])
    assert (engine.running, engine.waiting) == (2, 1)
    finish(engine)
    assert [each.future.done() for each in made] == [False, True, True, True, False]
    for each in made[1:4]:
        assert_plain(model, each, each.future.result(0))


@pytest.mark.parametrize("cache", ["keep", "recompute"])
def test_new_weights_sample_from_the_next_step_on(cache: Any, tmp_path: Path) -> None:
    model = tiny_model(1)
    engine = decoder(save(tiny_model(0), tmp_path / "old"))
    made = [Generation(np.arange(3, 8, dtype=np.int32) + index, SamplingConfig(40, seed=index)) for index in range(5)]
    for each in made:
        engine.accept(each)
    engine.admit()
    for _ in range(5):
        engine.step()
    in_rows = engine.running
    staged = engine.model.stage(save(model, tmp_path / "new"))
    engine.swap(1, staged, cache)
    finish(engine)
    spanning = [each for each in made if len(each.future.result(0).token_ids) > 6]
    assert 0 < len(spanning) <= in_rows
    for each in spanning:
        sampled = each.future.result(0)
        assert sampled.versions.tolist() == [0] * 6 + [1] * (len(sampled.versions) - 6)
        if cache == "recompute":
            assert_plain(model, each, sampled, start=6)
        else:  # computed on the keys and values of older weights: not what either policy alone would say
            with pytest.raises(AssertionError):
                assert_plain(model, each, sampled, start=6)


def test_scores_are_those_of_a_plain_forward(tmp_path: Path) -> None:
    model = tiny_model(0)
    engine = decoder(save(model, tmp_path))
    random = np.random.default_rng(0)
    asked = [
        (random.integers(3, VOCABULARY, length).astype(np.int32), start, temperature)
        for length, start, temperature in ((30, 1, 1.0), (7, 6, 0.7), (128, 100, 1.5), (5, 5, 1.0))
    ]
    for (tokens, start, temperature), scores in zip(asked, engine.model.score(asked), strict=True):
        plain = of_tokens(next_token_logprobs(model, tokens, temperature), tokens, start)
        np.testing.assert_allclose(scores, plain, atol=1e-4)


def test_staging_reads_shards_and_tied_weights(tmp_path: Path) -> None:
    engine = decoder(save(tiny_model(0), tmp_path / "old"))
    new = tiny_model(1)
    weights = {name: value.clone() for name, value in new.state_dict().items()}
    names = sorted(weights)
    del weights["lm_head.weight" if names[0] == "lm_head.weight" else names[0]]  # tied: the embedding stands for both
    (tmp_path / "new").mkdir()
    save_file({name: weights[name] for name in names[1:9]}, tmp_path / "new" / "model-00001-of-00002.safetensors")
    save_file({name: weights[name] for name in names[9:]}, tmp_path / "new" / "model-00002-of-00002.safetensors")
    engine.swap(1, engine.model.stage(tmp_path / "new"), "keep")
    for name, value in engine.model.model.state_dict().items():
        torch.testing.assert_close(value, new.state_dict()[name])


def test_damaged_weights_are_named_and_change_nothing(tmp_path: Path) -> None:
    engine = decoder(save(tiny_model(0), tmp_path / "old"))
    before = {name: value.clone() for name, value in engine.model.model.state_dict().items()}
    folder = save(tiny_model(1), tmp_path / "new")
    file = folder / "model.safetensors"
    weights = load_file(file)
    norm = weights.pop("model.norm.weight")
    damages: list[tuple[dict[str, torch.Tensor], str]] = [
        (weights, "lacks 1 parameters, model.norm.weight among them"),
        ({**weights, "model.norm.weight": norm[:8]}, r"model.norm.weight \(8,\) is no parameter"),
        ({**weights, "model.norm.weight": norm, "extra": norm.clone()}, "extra .* is no parameter"),
    ]
    for damaged, message in damages:
        save_file({name: value.clone() for name, value in damaged.items()}, file)
        with pytest.raises(WeightsDamaged, match=message):
            engine.model.stage(folder)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsDamaged, match="cannot be read"):
        engine.model.stage(folder)
    with pytest.raises(WeightsDamaged, match="no safetensors file"):
        engine.model.stage(tmp_path)
    for name, value in engine.model.model.state_dict().items():
        assert torch.equal(value, before[name])
