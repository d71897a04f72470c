"""Names known to every part, and the learner's implementations of them, are the same."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from headrace_core.config.algorithm_presets import ALGORITHMS, AlgorithmPreset
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.errors import InvalidRequest
from headrace_learner.algorithms import advantages, losses
from headrace_learner.algorithms.presets import IMPLEMENTATIONS, Algorithm, algorithm


def test_every_name_is_implemented_and_no_other() -> None:
    assert IMPLEMENTATIONS.keys() == ALGORITHMS.keys()


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_what_the_facts_say_is_what_the_implementation_wants(name: str) -> None:
    facts, implementation = ALGORITHMS[name], algorithm(name)
    of_group = implementation.advantages in (advantages.grpo, advantages.dr_grpo, advantages.rloo)
    assert facts.compares_within_group is of_group
    assert facts.wants_greedy is (implementation.advantages is advantages.remax)
    assert implementation.critic is (implementation.advantages is advantages.gae)
    assert Hyperparameters(algorithm=name).algorithm == name  # its defaults agree with each other


def test_what_makes_presets_of_one_family_differ() -> None:
    """As their papers have it; the arithmetic is in test_objectives."""
    expected: dict[str, tuple[Algorithm, dict[str, object]]] = {
        "dapo": (
            Algorithm(advantages.grpo, losses.clipped),
            {"clip_high": 0.28, "clip_low": 0.2, "loss_mean": "token"},
        ),
        "dr_grpo": (Algorithm(advantages.dr_grpo, losses.clipped), {"loss_mean": "constant"}),
        "gspo": (
            Algorithm(advantages.grpo, losses.gspo),
            {"clip_low": 3e-4, "clip_high": 4e-4, "loss_mean": "sequence", "importance_level": "geometric"},
        ),
        "m2po": (Algorithm(advantages.grpo, losses.unclipped), {"importance": "second_moment", "second_moment": 0.04}),
        "remax": (
            Algorithm(advantages.remax, losses.unclipped),
            {"kl_coefficient": 0.05, "kl_in": "reward", "advantage_clip": 5.0, "temperature": 1.0},
        ),
    }
    for name, (implementation, settings) in expected.items():
        assert IMPLEMENTATIONS[name] == implementation
        given = Hyperparameters(algorithm=name)
        assert {setting: getattr(given, setting) for setting in settings} == settings
    assert Hyperparameters(algorithm="dapo").filter_groups
    assert not Hyperparameters(algorithm="grpo").filter_groups


@pytest.mark.parametrize("name", ["ppo", "dapo", "gspo", "cispo"])
def test_presets_that_live_by_their_clip_make_several_updates(name: str) -> None:
    assert IMPLEMENTATIONS[name].policy_loss is not losses.unclipped
    assert Hyperparameters(algorithm=name).minibatches > 1


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    known = ", ".join(sorted(ALGORITHMS))
    with pytest.raises(InvalidRequest, match=f"unknown algorithm 'gripo'; known: {known}"):
        algorithm("gripo")
    with pytest.raises(ValidationError, match=f"unknown algorithm 'gripo'; known: {known}"):
        Hyperparameters(algorithm="gripo")


def test_an_algorithm_sets_what_the_user_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "higher", AlgorithmPreset("clips higher", defaults={"clip_high": 0.28}))
    assert Hyperparameters(algorithm="higher").clip_high == 0.28
    assert Hyperparameters(algorithm="higher", clip_high=0.3).clip_high == 0.3
    assert Hyperparameters.model_validate({"algorithm": "higher", "clip_high": "auto"}).clip_high == 0.28


def test_minibatches_that_nobody_asked_for_give_way_to_a_small_batch() -> None:
    assert Hyperparameters.model_validate({"algorithm": "ppo"}).minibatches == 4
    assert Hyperparameters.model_validate({"algorithm": "ppo", "batch_size": 2}).minibatches == 2
    with pytest.raises(ValidationError, match="minibatches cannot exceed batch_size"):
        Hyperparameters.model_validate({"algorithm": "ppo", "batch_size": 2, "minibatches": 4})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"algorithm": "rloo", "group_size": 1}, "group_size must be at least 2"),
        ({"algorithm": "remax", "filter_groups": True}, "group_size must be at least 2"),
        ({"kl_coefficient": 0.1, "kl_in": "loss"}, r"set kl_in to reward, or kl_estimator to k3\+ or k2"),
        ({"algorithm": "m2po", "proximal": "interpolate"}, "needs proximal recompute"),
        ({"optimizer": "galore", "learner_ranks": 2}, "cannot be sharded"),
        ({"optimizer": "fira", "lora_rank": 8}, "would do nothing"),
    ],
)
def test_what_would_teach_nothing_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Hyperparameters.model_validate(wrong)
