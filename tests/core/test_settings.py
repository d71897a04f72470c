"""Settings of the service and of a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import TypeAdapter, ValidationError

from headrace_core.config.hyperparameters import WHOLE_DISTRIBUTION, Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.types.staleness import Limits


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PORT", "9000")
    monkeypatch.setenv("HEADRACE_DATA_DIR", "/srv/headrace")
    monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://example:6379/0")
    settings = Settings()
    assert (settings.port, settings.data_dir) == (9000, Path("/srv/headrace"))
    assert settings.redis_url == "redis://example:6379/0"
    assert Settings(port=0).port == 0  # an option of the command line goes before


@pytest.mark.parametrize(("name", "value"), [("PORT", "70000"), ("LEASE_SECONDS", "0"), ("MAX_RESTARTS", "-1")])
def test_a_setting_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HEADRACE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.parametrize("proxy", ["nginx", "*", "10.0.0.1:443", "10.0.0.1/8", "10.0.0.0/33", "", "::1%eth0/64"])
def test_a_proxy_that_would_be_believed_by_nobody_is_refused(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HEADRACE_TRUSTED_PROXIES", json.dumps(["127.0.0.1", proxy]))
    with pytest.raises(ValidationError, match="is no address and no network") as refused:
        Settings()
    assert repr(proxy) in str(refused.value)


def test_proxies_are_addresses_or_networks() -> None:
    proxies = ("127.0.0.1", "::1", "10.0.0.0/24", "fd00::/8", "0.0.0.0/0")
    assert Settings(trusted_proxies=proxies).trusted_proxies == proxies


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n_steps": 3, "n_epochs": 1}, "n_steps or n_epochs"),
        ({"max_tokens": 512, "max_context": 512}, "room for a prompt"),
        ({"minibatches": 8, "batch_size": 4}, "minibatches"),
        ({"learning_rate": 1e-4, "learning_rate_multiplier": 2}, "learning_rate_multiplier"),
        ({"max_stalenes": 1}, "max_stalenes"),
        ({"max_staleness": -1}, "max_staleness"),
        ({"late": "never"}, "late"),
        ({"temperature": 0}, "temperature"),
        ({"weight_decay": 1.5}, "weight_decay"),
        ({"learning_rate": None, "learning_rate_multiplier": 1e6}, "learning_rate_multiplier"),
        ({"clip_low": 2}, "clip_low"),
        ({"learning_rate": True}, "true is no value of it"),
        ({"n_steps": True}, "true is no value of it"),
        ({"max_staleness": False}, "false is no value of it"),
        ({"temperature": 1e-300}, "too near to 0: give at least 0.01"),
        ({"kv_cache_gib": 1e-300}, "too near to 0"),
        ({"top_p": 0.95}, "top_p: training samples from the whole distribution"),
        ({"top_k": 50}, "top_k: training samples from the whole distribution"),
        ({"min_p": "0.1"}, "min_p: training samples from the whole distribution"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Hyperparameters.model_validate(given)


def test_every_number_has_a_least_and_a_largest_value() -> None:
    """What is computed of one without would become infinite, or no number, in the midst of a job."""
    for name, field in Hyperparameters.model_fields.items():
        of_numbers = {int, float} & {field.annotation, *get_args(field.annotation)}
        if not of_numbers or get_origin(field.annotation) is Literal:
            continue
        annotated: Any = Annotated[field.annotation, *field.metadata]
        schema = TypeAdapter(annotated).json_schema()
        bounds = [bound for part in schema.get("anyOf", [schema]) for bound in part] + list(schema)
        assert {"minimum", "exclusiveMinimum"} & set(bounds), f"{name} has no least value"
        assert {"maximum", "exclusiveMaximum"} & set(bounds), f"{name} has no largest value"


def test_auto_takes_the_default() -> None:
    auto = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    assert Hyperparameters.model_validate(auto) == Hyperparameters()


def test_ways_to_cut_the_distribution_are_taken_where_they_cut_nothing() -> None:
    neutral = {"top_p": 1.0, "top_k": -1, "min_p": 0.0}
    assert Hyperparameters.model_validate(neutral) == Hyperparameters()
    assert not WHOLE_DISTRIBUTION.keys() & Hyperparameters.model_fields.keys(), "refused before it is read"


def test_steps_and_limits() -> None:
    assert Hyperparameters(n_steps=7, batch_size=4, max_staleness=2).limits(rows=10) == Limits(4, 2, 28)
    assert Hyperparameters(n_epochs=3, batch_size=4).steps(rows=10) == 8  # the last rows are trained, too
    assert Hyperparameters(n_epochs=2, batch_size=4).steps(rows=10) == 5
    assert Hyperparameters(batch_size=64).steps(rows=10) == 1


def test_learning_rate_and_intervals() -> None:
    default = Hyperparameters().peak_learning_rate
    assert Hyperparameters(learning_rate_multiplier=3).peak_learning_rate == pytest.approx(3 * default)
    assert Hyperparameters(learning_rate=0.5).peak_learning_rate == 0.5
    assert [Hyperparameters().evaluation_interval(n) for n in (3, 50)] == [1, 5]
    assert [Hyperparameters().checkpoint_every(n) for n in (3, 50)] == [1, 10]
    assert Hyperparameters(eval_interval=2, checkpoint_interval=3).evaluation_interval(50) == 2
    assert Hyperparameters(checkpoint_interval=3).checkpoint_every(50) == 3
