"""Writes the pages that say what is in the code (settings, metrics, command line, exporters), and docs/evidence.md.

A test holds them together.

    .venv/bin/python docs/generate.py

Meanings are the fields' own descriptions and docstrings. `PLAIN` says what a field is where its docstring does not;
a field of which neither speaks is an error, so that nothing is measured or set without being documented.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cli_page
import evidence_page
import exporters_page
import typer.main
from pydantic import BaseModel

from headrace_core.config.algorithm_presets import ALGORITHMS
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.types import metrics
from headrace_gateway.cli import main as cli

HERE = Path(__file__).parent

SETTINGS_INTRO = """\
# Settings

<!-- Written by docs/generate.py. Change the models' descriptions, then run it. -->

This page lists all settings: those of a job, which its user sets, and those of the service, which its operator sets.
An unknown name is refused.

## Of a job

A job's settings are in `method.reinforcement.hyperparameters` of a request, or in `[hyperparameters]` of a job file.
`"auto"` means the default. A dash is a default that depends on the model, the data or the engine's device. Submission
fills in what depends on the first two, and `GET /v1/fine_tuning/jobs/{job_id}` shows it:

- steps: `n_steps`, or as many as `n_epochs` passes over the training file need, rounded up; one pass by default;
- learning rate: `learning_rate`, or a base of BASE_RATE times `learning_rate_multiplier`;
- `max_context`: reduced to the model's own maximum, if you do not set it;
- `max_tokens`: reduced for long prompts, if you do not set it; an event reports that, with the row. A row that would
  leave fewer than 64 tokens (with a short context, fewer than a quarter of it) is refused instead;
- `eval_interval`: a tenth of the job; `checkpoint_interval`: a fifth.

Training samples from the whole distribution at `temperature`: `top_p`, `top_k` and `min_p` are accepted with the
values that change nothing (1; 0 or -1; 0) and refused with any other
([decision 0028](decisions/0028-training-samples-the-whole-distribution.md)).

[staleness.md](staleness.md) explains how `max_staleness`, `late`, `update_mode`, `batch_size`, `minibatches`, the clip
and the staleness weight work together.
"""

ALGORITHMS_INTRO = """
### Algorithms

An algorithm is an advantage function and a policy loss. Its defaults apply to the settings that you do not set.
"""

SERVICE_INTRO = """
## Of the service

The service's settings are environment variables; some are also options of `headrace serve`. With none set, everything
runs on this machine. `RAY_ADDRESS` applies if `HEADRACE_RAY_ADDRESS` is not set. [cli.md](cli.md) lists the variables
of the command line.
"""

METRICS_INTRO = """\
# Metrics

<!-- Written by docs/generate.py. Change the structs' docstrings, then run it. -->

This page defines every measurement that a job records; [prometheus.md](prometheus.md) lists what Prometheus scrapes.
A job's measurements are one append-only stream. `GET /v1/fine_tuning/jobs/{job_id}/metrics` returns it as a list of
`{id, kind, data}`, `GET /v1/fine_tuning/jobs/{job_id}/stream` as server-sent events named by `kind`; the dashboard's
charts use nothing else. `data` has the fields below.

| kind | written by | when |
| --- | --- | --- |
| `step` | learner | each optimizer step, after it is settled |
| `evaluation` | controller | each evaluation on the validation file |
| `update` | each rollout worker | each weight update that it applied |
| `worker` | every worker | every two seconds |
| `reward` | each rollout worker | every few seconds in which it scored something |

Times are Unix seconds, durations are seconds, shares are between 0 and 1. Ages count policy versions; as JSON keys they
are text. A step is recorded once, after it is settled; if the learner dies between settling a step and recording it,
the step has no record.

`step`, `evaluation` and `update` are always recorded. `worker` and `reward` are written at intervals, each entry with
the counts since the worker's start, and are thinned out: the first 2,000 entries of a worker are all recorded; later,
an entry is recorded only if the previous one is older than 1/2,000 of the time since the first. After a day with an
entry every two seconds, that is one entry in 43 s, and about 8,100 entries instead of 43,200. The newest values are
always available from Prometheus and the job's other routes.

Each kind may take 16 MiB of Redis' memory, enough for some ten thousand steps. When a kind has used them up, every
second entry of its older three quarters is removed, never the first; `GET /v1/fine_tuning/jobs/{job_id}/queues` counts
the removed entries.
"""

EVENT_TEXT = """
## `data` of a metrics event

Events of type `metrics` carry the figures of a step or an evaluation for clients of OpenAI's surface. After an
evaluation, `data` has the fields of `evaluation` above and `full_valid_mean_reward`; after a step, it has:

| field | meaning |
| --- | --- |
| `step`, `total_steps` | number of the step, and of all steps of the job |
| `train_mean_reward`, `train_reward_std` | mean and standard deviation of the reward over the step's completions |
| `train_loss`, `entropy`, `grad_norm` | as in `step` above |
| `completion_length` | mean length of the completions, in tokens |
| `trained_tokens`, `masked_tokens` | tokens that contributed to the gradient; tokens that were too old for it |
| `staleness` | `age_mean` and `age_max` of the tokens that contributed, and the `bound` |
"""

PLAIN = {
    "AgeMetrics": {},
    "StepMetrics": {
        "total_steps": "Number of steps of the whole job.",
        "time": "When the step was recorded.",
        "reward_std": "Standard deviation of the same rewards.",
        "groups": "Groups trained in the step.",
        "completions": "Completions of those groups.",
        "masked_tokens": "Tokens left out of the gradient, because they are older than max_staleness.",
        "ages": "Age → figures of its tokens: the struct `AgeMetrics`, below.",
        "completion_length": "Mean length of a completion, in sampled tokens.",
        "loss": "Mean loss of the contributing tokens.",
        "grad_norm": "Norm of the gradient before clipping; the largest of the minibatches.",
        "learning_rate": "Learning rate of the step.",
        "effective_sample_size": "As in `AgeMetrics`, over all contributing tokens.",
        "clip_share": "As in `AgeMetrics`, over all contributing tokens.",
        "behaviour_kl": "As in `AgeMetrics`, over all contributing tokens.",
    },
    "EvaluationMetrics": {
        "time": "When the evaluation ended.",
        "seconds": "Duration of the evaluation; training continued meanwhile.",
        "samples": "Number of rows evaluated.",
        "components": "Mean of each reward component.",
        "reward_failed": "Samples whose reward failed.",
        "completion_length": "Mean length of a completion, in sampled tokens.",
    },
    "UpdateMetrics": {
        "worker": "Name of the worker within the job.",
        "time": "When the update was applied.",
        "version": "The policy version that samples from then on.",
        "staged_seconds": "Time to read and prepare the weights, during which generation continued.",
        "paused_seconds": "Time in which no token could be sampled.",
        "requests_in_flight": "Number of requests in flight at the pause.",
    },
    "WorkerMetrics": {
        "worker": "Name of the worker within the job.",
        "state": "State of the worker; a rollout worker that is draining or drained takes no more groups.",
        "time": "Time of the heartbeat.",
        "version": "The policy version that a rollout worker samples with, or that the learner has trained.",
        "uptime": "Seconds since the worker was ready.",
        "groups": "Groups committed, or trained, since its start.",
    },
    "RewardMetrics": {
        "worker": "Name of the worker within the job.",
        "time": "When the entry was recorded.",
        "groups": "Groups scored.",
        "drift_rounds": "Number of times that the panel was scored again.",
    },
}
"""By struct and field: what the code leaves to the name."""


def main() -> None:
    for name, text in pages().items():
        (HERE / name).write_text(text)


def pages() -> dict[str, str]:
    """File name → text."""
    return {
        "settings.md": _settings(),
        "metrics.md": _metrics(),
        "cli.md": cli_page.page(),
        "exporters.md": exporters_page.page(),
        "evidence.md": evidence_page.page(),
    }


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _settings() -> str:
    parts = [SETTINGS_INTRO.replace("BASE_RATE", f"{Hyperparameters.model_validate({}).peak_learning_rate:g}")]
    for title, names in _sections(Hyperparameters):
        rows: list[tuple[str, ...]] = [
            (f"`{n}`", _default(Hyperparameters, n), _allowed(Hyperparameters, n), _meaning(n)) for n in names
        ]
        parts.append(
            f"\n### {title[0].upper()}{title[1:]}\n\n" + _table(("setting", "default", "allowed", "meaning"), rows)
        )
    parts.append(ALGORITHMS_INTRO + "\n" + _table(("algorithm", "what it does", "brings along"), _algorithms()))
    parts.append(SERVICE_INTRO + "\n" + _table(("variable", "option", "default", "allowed", "meaning"), _service()))
    return "".join(parts)


def _algorithms() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, facts in ALGORITHMS.items():
        brings = [f"`{k} = {v!r}`" for k, v in facts.defaults.items()] + ["a greedy completion"] * facts.wants_greedy
        rows.append((f"`{name}`", facts.description, ", ".join(brings)))
    return rows


def _service() -> list[tuple[str, ...]]:
    serve: Any = typer.main.get_command(cli.app)
    options = {p.name: max(p.opts, key=len) for p in serve.commands["serve"].params}
    rows: list[tuple[str, ...]] = []
    for name, field in Settings.model_fields.items():
        option = f"`{options[name]}`" if name in options else ""
        variable = f"`HEADRACE_{name.upper()}`"
        rows.append((variable, option, _default(Settings, name), _allowed(Settings, name), str(field.description)))
    return rows


def _sections(model: type[BaseModel]) -> list[tuple[str, list[str]]]:
    """(title, fields): the comments between the fields, in the order of the source; those of its bases first."""
    found: list[tuple[str, list[str]]] = []
    bases = [base for base in reversed(model.__mro__) if base.__module__.startswith("headrace_")]
    for line in (line for base in bases for line in inspect.getsource(base).splitlines()):
        if title := re.fullmatch(r"    # (.+)", line):
            found.append((title[1], []))
        elif (field := re.match(r"    (\w+): ", line)) and field[1] in model.model_fields:
            found[-1][1].append(field[1])
    listed = [name for _, names in found for name in names]
    assert listed == list(model.model_fields), "a field stands before the first comment"
    return found


def _default(model: type[BaseModel], name: str) -> str:
    value = model.model_fields[name].default
    if value is None:
        return "–"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _meaning(name: str) -> str:
    description = Hyperparameters.model_fields[name].description
    assert description, f"{name} has no description"
    return description


def _allowed(model: type[BaseModel], name: str) -> str:
    schema: dict[str, Any] = model.model_json_schema()["properties"][name]
    options = [o for o in schema.get("anyOf", [schema]) if o.get("type") != "null" and o.get("const") != "auto"]
    return " or ".join(_one_allowed(option) for option in options)


def _one_allowed(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = {
        "boolean": "true or false",
        "integer": "integer",
        "number": "number",
        "string": "path" if schema.get("format") == "path" else "text",
        "array": "JSON list",
        "object": "JSON object",
    }[schema["type"]]
    bounds = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    return " ".join([kind, ", ".join(f"{sign} {schema[key]:g}" for key, sign in bounds if key in schema)]).strip()


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _metrics() -> str:
    structs = [n for n in ast.parse(inspect.getsource(metrics)).body if isinstance(n, ast.ClassDef)]
    order = sorted(structs, key=lambda s: not hasattr(getattr(metrics, s.name), "kind"))  # then what the kinds hold
    return METRICS_INTRO + "".join(map(_struct, order)) + EVENT_TEXT


def _struct(struct: ast.ClassDef) -> str:
    kind = getattr(getattr(metrics, struct.name), "kind", None)
    title = f"`{kind}`" if kind else f"`{struct.name}`"
    rows: list[tuple[str, ...]] = []
    for field, after in zip(struct.body, [*struct.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).startswith("ClassVar"):
            name = ast.unparse(field.target)
            text = _docstring(after) or PLAIN[struct.name][name]
            rows.append((f"`{name}`", f"`{ast.unparse(field.annotation)}`", text))
    return f"\n## {title}\n\n{ast.get_docstring(struct)}\n\n" + _table(("field", "type", "meaning"), rows)


def _docstring(node: ast.stmt | None) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return None


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    main()
