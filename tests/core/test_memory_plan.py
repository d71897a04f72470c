"""The memory plan: rows of public models, what it chooses, what it refuses, and that more of anything never takes less.

The learner's tests hold its figures against torch (`tests/learner/test_memory_plan.py`).
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest
from headrace_core.planning.devices import Devices, loads
from headrace_core.planning.fitting import fitted
from headrace_core.planning.learner_memory import learner_parts
from headrace_core.planning.memory_plan import memory_plan
from headrace_core.planning.model_shape import ModelShape, model_shape, numbers
from headrace_core.planning.rollout_memory import GIB, cache_tokens
from headrace_lab.paths import ROOT

QWEN25_7B = {
    **{"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944},
    **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
}
QWEN3_14B = {
    **{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 17408},
    **{"num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128},
}
QWEN3_32B = QWEN3_14B | {"intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64}
QWEN3_30B_A3B = {
    **{"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144},
    **{"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48},
    **{"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128},
}
LLAMA_70B = {
    **{"model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672},
    **{"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8},
}
SMALL = {
    **{"model_type": "qwen3", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
}


def shape(config: dict[str, Any]) -> ModelShape:
    found = model_shape(config)
    assert found is not None
    return found


def job(**given: Any) -> Hyperparameters:
    return Hyperparameters.model_validate(given)


def gpus(count: int, gib: float = 80) -> Devices:
    return Devices(count, int(gib * GIB), gpu=True)


# ── public models ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (QWEN25_7B, 7_615_616_512),
        (QWEN3_14B, 14_768_307_200),
        (QWEN3_32B, 32_762_123_264),
        (QWEN3_30B_A3B, 30_532_122_624),
    ],
)
def test_parameters_of_public_models(config: dict[str, Any], parameters: int) -> None:
    """As their model cards and index files count them."""
    assert numbers(shape(config).parameters()) == parameters


def test_a_default_cache_holds_what_the_engine_was_seen_to_hold() -> None:
    assert cache_tokens(shape(QWEN25_7B), job(), GIB, gpu=True) == 18_724
    assert cache_tokens(shape(QWEN3_32B), job(), GIB, gpu=True) == 4_096


ROWS: dict[str, tuple[dict[str, Any], Devices, dict[str, Any]]] = {
    "Qwen2.5-7B": (QWEN25_7B, gpus(8), {"gradient_checkpointing": True, "learner_ranks": 2, "kv_cache_gib": 14.0}),
    "Qwen3-14B": (QWEN3_14B, gpus(8), {"gradient_checkpointing": True, "learner_ranks": 4, "kv_cache_gib": 15.25}),
    "Qwen3-32B": (QWEN3_32B, gpus(8, 141), {"gradient_checkpointing": True, "learner_ranks": 5, "kv_cache_gib": 64.0}),
    "Qwen3-30B-A3B": (
        QWEN3_30B_A3B,
        gpus(8, 141),
        {"gradient_checkpointing": True, "learner_ranks": 4, "kv_cache_gib": 13.25},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_defaults_that_fit(name: str) -> None:
    config, devices, chosen = ROWS[name]
    changed, plan = fitted(shape(config), job(), devices)
    assert plan.chosen == chosen
    assert plan.fits
    assert all(device.total == sum(device.parts.values()) <= device.usable for device in plan.devices)
    assert changed.model_dump() == job().model_dump() | chosen


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_sizes_in_the_docs_is_planned(name: str) -> None:
    config, devices, chosen = ROWS[name]
    _, plan = fitted(shape(config), job(), devices)
    learner, rollout = (f"{device.total / GIB:.1f}" for device in plan.devices)
    cells = (name, devices, chosen["learner_ranks"], learner, rollout, f"{plan.kv_cache_tokens:,}")
    page = (ROOT / "docs" / "how-to" / "scale-out.md").read_text()
    assert f"| {' | '.join(map(str, cells))} |" in page.splitlines()


def test_parts_of_one_rank_of_7b() -> None:
    """Computed by hand: two ranks, float32 weights, gradients and two moments; bfloat16 passes."""
    parts = learner_parts(shape(QWEN25_7B), job(learner_ranks=2, gradient_checkpointing=True), 2)
    half = 4 * 7_615_616_512 // 2
    assert parts["weights"] == parts["gradients"] == half
    assert parts["optimizer"] == 2 * half
    assert parts["reference"] == parts["critic"] == 0
    boundaries = 8192 * 28 * 2 * 3584
    assert parts["activations"] > boundaries


# ── engines ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def parts_of_rollout(config: dict[str, Any], devices: Devices, **given: Any) -> dict[str, int]:
    """Parts of the device on which a rollout worker is, without who holds them."""
    device = memory_plan(shape(config), job(**given), devices).devices[-1]
    return {name.removeprefix("rollout: "): size for name, size in device.parts.items()}


def test_devices_of_an_engine_share_weights_and_cache_and_stage_a_whole_version_each() -> None:
    """Computed by hand, in bfloat16: half of the weights, two of four heads of keys and values."""
    parts = parts_of_rollout(QWEN25_7B, gpus(3), tensor_parallel_size=2, kv_cache_gib=1.0)
    assert parts["weights"] == 7_615_616_512
    assert parts["weight staging"] == 2 * 7_615_616_512
    assert parts["KV cache"] == GIB
    plan = memory_plan(shape(QWEN25_7B), job(tensor_parallel_size=2, kv_cache_gib=1.0), gpus(3))
    assert [(device.processes, device.devices) for device in plan.devices] == [("learner", 1), ("rollout", 2)]
    assert plan.kv_cache_tokens == GIB // (2 * 28 * 2 * 128 * 2)
    assert cache_tokens(shape(QWEN25_7B), job(tensor_parallel_size=8), GIB, gpu=True) == GIB // (2 * 28 * 1 * 128 * 2)


def test_an_engine_that_sizes_its_cache_takes_its_share_of_each_gpu() -> None:
    cases: list[tuple[dict[str, Any], float]] = [({}, 0.9), ({"gpu_memory_utilization": 0.5}, 0.5)]
    for asked, share in cases:
        parts = parts_of_rollout(QWEN25_7B, gpus(2), **asked)
        assert sum(parts.values()) - parts.get("weight staging", 0) == pytest.approx(share * 80 * GIB, abs=1)
    beside_learner = parts_of_rollout(SMALL, gpus(1))
    of_engine = {name: size for name, size in beside_learner.items() if not name.startswith("learner")}
    assert sum(of_engine.values()) - of_engine["weight staging"] == pytest.approx(0.45 * 80 * GIB, abs=1)


def test_a_version_that_does_not_fit_beside_the_engine_is_staged_on_the_host() -> None:
    assert "weight staging" in parts_of_rollout(QWEN3_32B, gpus(2, 141), kv_cache_gib=2.0)
    assert "weight staging" not in parts_of_rollout(QWEN3_32B, gpus(2, 141), kv_cache_gib=60.0)
    assert "weight staging" in parts_of_rollout(QWEN3_32B, gpus(2, 141), kv_cache_gib=60.0, engine="transformers")


def test_fp8_halves_the_layers_of_an_engine_and_nothing_else() -> None:
    outside = 2 * 152064 * 3584 + 3584
    weights = parts_of_rollout(QWEN25_7B, gpus(2), quantization="fp8")["weights"]
    assert weights == 7_615_616_512 + outside


def test_an_engine_too_large_for_a_gpu_is_split() -> None:
    _, plan = fitted(shape(LLAMA_70B), job(), gpus(64))
    assert plan.chosen["tensor_parallel_size"] == 2
    assert [device.devices for device in plan.devices] == [plan.chosen["learner_ranks"], 2]
    _, as_given = fitted(shape(LLAMA_70B), job(tensor_parallel_size=8), gpus(64))
    assert "tensor_parallel_size" not in as_given.chosen


# ── choices and refusals ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_user_gave_is_not_changed() -> None:
    given = {"gradient_checkpointing": False, "learner_ranks": 7, "kv_cache_gib": 2.0}
    changed, plan = fitted(shape(QWEN25_7B), job(**given), gpus(8, 141))
    assert {name: getattr(changed, name) for name in given} == given
    assert not plan.chosen.keys() & given.keys()


def test_a_job_that_fits_a_machine_stays_as_it_is() -> None:
    asked = job(engine="transformers")
    changed, plan = fitted(shape(SMALL), asked, Devices(1, 16 * GIB, gpu=False))
    assert (changed, plan.chosen) == (asked, {})
    assert [device.processes for device in plan.devices] == ["learner + rollout"]


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], Devices]] = {
    "a setting": (QWEN25_7B, {"learner_ranks": 2, "gradient_checkpointing": False}, gpus(3)),
    "the cache": (SMALL, {"kv_cache_gib": 80.0}, gpus(2)),
    "adapters or more GPUs": (QWEN25_7B, {}, gpus(2)),
    "several": (QWEN3_14B, {"gradient_checkpointing": False, "token_budget": 65536}, gpus(8)),
    "too few GPUs": (QWEN25_7B, {"learner_ranks": 8}, gpus(8)),
    "a machine": (QWEN25_7B, {}, Devices(1, 64 * GIB, gpu=False)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_refusal_names_does_fit(name: str) -> None:
    config, given, devices = REFUSED[name]
    with pytest.raises(InvalidRequest) as refused:
        fitted(shape(config), job(**given), devices)
    message = refused.value.message
    assert refused.value.param in (*Hyperparameters.model_fields, "model")
    if named := re.search(r"\b[sS]et ([a-z_]+ to \S+( and [a-z_]+ to \S+)*)", message):
        changes = dict(change.split(" to ") for change in named[1].rstrip(",").split(" and "))
        values = {key: json.loads(value.rstrip(",")) for key, value in changes.items()}
        assert fitted(shape(config), job(**(given | values)), devices)[1].fits, message
    else:
        assert re.search(r"At the least it needs [\d.,]+ GiB a device", message), message
    if named := re.search(r"[tT]ake (\d+) such GPUs with learner_ranks (\d+), .* token_budget (\d+)", message):
        more = {"learner_ranks": int(named[2]), "token_budget": int(named[3]), "gradient_checkpointing": True}
        assert fitted(shape(config), job(**(given | more)), Devices(int(named[1]), devices.memory, True))[1].fits


def test_a_refusal_says_how_much_is_lacking() -> None:
    with pytest.raises(InvalidRequest) as refused:
        fitted(shape(QWEN25_7B), job(), gpus(2))
    assert "on 2 GPUs of 80 GiB: learner would need 169.7 GiB on one device, 56.7 GiB of them" in refused.value.message
    assert "Set lora_rank to 16, or take 3 such GPUs with learner_ranks 2" in refused.value.message


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "mamba"},
        {"model_type": "qwen3"},
        SMALL | {"hidden_size": "x"},
        SMALL | {"head_dim": -1},
        SMALL | {"num_hidden_layers": 10**12},
    ],
)
def test_an_unknown_model_has_no_plan(config: dict[str, Any]) -> None:
    assert model_shape(config) is None


# ── more is never less ───────────────────────────────────────────────────────────────────────────────────────────────

SIZES = st.fixed_dictionaries(
    {
        "token_budget": st.integers(64, 200_000),
        "max_context": st.integers(300, 100_000),
        "gradient_checkpointing": st.booleans(),
        "algorithm": st.sampled_from(["grpo", "ppo"]),
        "kl_coefficient": st.sampled_from([0.0, 0.1]),
        "learner_precision": st.sampled_from(["bfloat16", "float32"]),
        "rollout_workers": st.integers(1, 4),
        "max_running": st.integers(1, 512),
        "kv_cache_gib": st.sampled_from([0.5, 2.0, 8.0]),
    }
)
MODELS = st.sampled_from([SMALL, QWEN25_7B, QWEN3_30B_A3B, SMALL | {"model_type": "llama", "attention_bias": True}])


def most(config: dict[str, Any], devices: Devices, **given: Any) -> int:
    """Bytes of the fullest device."""
    return max(device.total for device in memory_plan(shape(config), job(**given), devices).devices)


@settings(max_examples=100, deadline=None)
@given(MODELS, SIZES, st.integers(1, 20), st.integers(1, 30_000), st.booleans())
def test_longer_larger_or_deeper_never_takes_less(
    config: dict[str, Any], given: dict[str, Any], times: int, more: int, gpu: bool
) -> None:
    devices = Devices(8, 80 * GIB, gpu)
    before = most(config, devices, **given)
    assert most(config, devices, **(given | {"max_context": given["max_context"] + more})) >= before
    assert most(config, devices, **(given | {"token_budget": given["token_budget"] + more})) >= before
    assert most(config, devices, **(given | {"max_running": given["max_running"] + times})) >= before
    deeper = config | {"num_hidden_layers": config["num_hidden_layers"] + times}
    assert most(deeper, devices, **given) > before
    wider = config | {"vocab_size": config["vocab_size"] + more}
    assert numbers(shape(wider).parameters()) > numbers(shape(config).parameters())


@settings(max_examples=100, deadline=None)
@given(MODELS, SIZES, st.integers(2, 12), st.integers(1, 12), st.booleans())
def test_more_devices_never_need_more_memory_each(
    config: dict[str, Any], given: dict[str, Any], ranks: int, more: int, checkpointing: bool
) -> None:
    """From the second rank on: the first one in float32 gathers nothing."""
    given = given | {"gradient_checkpointing": checkpointing}
    few, many = ranks + 1, ranks + 1 + more
    before = most(config, gpus(few), **given, learner_ranks=ranks)
    assert most(config, gpus(many), **given, learner_ranks=ranks) <= before
    assert most(config, gpus(many), **given, learner_ranks=ranks + more) <= before


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), st.sampled_from([1, 1, 2, 4]), st.integers(1, 40), st.booleans())
def test_every_process_has_a_device(ranks: int, workers: int, split: int, count: int, gpu: bool) -> None:
    asked = job(learner_ranks=ranks, rollout_workers=workers, tensor_parallel_size=split)
    try:
        places = loads(asked, Devices(count, GIB, gpu))
    except InvalidRequest:
        assert gpu
        assert ranks > 1 or split > 1
        assert count <= ranks or count < ranks + workers * split
        return
    each = workers * (split if gpu else 1)
    assert ranks <= sum(place.devices * place.ranks for place in places)
    assert each <= sum(place.devices * place.workers for place in places)
    assert sum(place.devices for place in places) <= count
    assert all(place.part * (place.ranks + place.workers) <= 1 for place in places if gpu)
