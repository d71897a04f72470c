"""`headrace rewards`: tries a reward on data, on this machine, with no gateway and before any job runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from headrace_core.errors import InvalidData, InvalidRequest
from headrace_core.protocols.grader_check import CheckReport, Failure, Outcome, Score

from ..grading.grader_checks import TOKENIZER, check_grader
from . import reward_trial
from .common import out, service_settings
from .job_file import with_absolute_paths
from .reward_trial import Summary, Trial
from .tables import Column, print_list

rewards = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Try rewards before a job runs.")

_MAX_SECONDS = 3600.0
_ROWS_SHOWN = 20
_TEXT_SHOWN = 40
_NOTE_SHOWN = 60
_FAILURE_SHOWN = 100
"""Characters of a failure in the list of rows; below that list, failures are shown whole."""
_COLUMNS = (
    Column("row", justify="right"),
    Column("completion", folds=True),
    Column("outcome"),
    Column("ms", justify="right"),
    Column("parts, or why not", folds=True),
)
_ALL_ZERO = (
    "              every score is 0: either all these completions are wrong, or the reward looks for what they do not "
    "have (a key of the rows, tags around the answer). A job whose completions all score 0 learns nothing."
)


@rewards.callback()
def _group() -> None:
    """Try rewards before a job runs."""


@rewards.command()
def check(
    data: Annotated[Path, typer.Option(help="File of rows to score, in the format of a training file.")],
    function: Annotated[str | None, typer.Argument(help="path/file.py:function")] = None,
    grader: Annotated[Path | None, typer.Option(help="A grader as JSON, instead of a function.")] = None,
    completions: Annotated[
        str | None, typer.Option(help="Key of the rows, or a file: line n is the JSON of row n's text or texts.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 100,
    form: Annotated[
        Literal["text", "messages"] | None,
        typer.Option(help="Type of prompts and completions; found by trying if not given."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of a model whose tokenizer makes the completion_ids that a function asks for."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, max=600, help="Seconds for a call of the function.")] = 30.0,
) -> None:
    """Score rows with a reward, and show scores, times and errors. Exit code 1 if anything failed.

    The completions are the rows' `completion`, `response` or `answer`, unless --completions names another key. An empty
    completion is tried too. The operator's rules for rewards (HEADRACE_… variables, docs/settings.md) apply.
    """
    description = _grader(function, grader, form, timeout)
    if model is not None and not (model / TOKENIZER).is_file():
        raise InvalidRequest(f"{model} holds no {TOKENIZER}", param="model")
    trial = reward_trial.read(data, completions, limit)
    asking = check_grader(
        description,
        service_settings().reward_rules,
        samples=trial.samples,
        groups=trial.groups,
        seconds=_MAX_SECONDS,
        model=model,
    )
    with out.status(f"scoring {len(trial.rows)} rows …"):
        verdict = asyncio.run(asking)
    for remark in verdict.ignored:
        out.print(f"[yellow]Without effect:[/] {escape(remark)}")
    summary = reward_trial.summary(verdict)
    _show_samples(trial, verdict)
    _show_summary(trial, summary, verdict.outcomes[-1])
    _show_failures(summary)
    if summary.failed:
        raise typer.Exit(1)


def _grader(function: str | None, file: Path | None, form: str | None, timeout: float) -> Any:
    if (function is None) == (file is None):
        raise InvalidRequest("name one reward: path/file.py:function, or --grader with a file")
    if file is None:
        name = (function or "").rpartition(":")[2][:256] or "reward"
        return {"type": "function", "name": name, "function": function, "form": form, "timeout": timeout}
    try:
        return with_absolute_paths(json.loads(file.read_bytes()), file.absolute().parent)
    except OSError as error:
        raise InvalidData(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{file}: not JSON: {error}") from error


def _show_samples(trial: Trial, verdict: CheckReport) -> None:
    """The first rows, and the empty completion."""
    rows, texts = [], iter(zip(trial.samples, verdict.outcomes, strict=True))
    for number, (size, seconds) in enumerate(zip(trial.groups, verdict.seconds, strict=True), start=1):
        for place in range(size):
            sample, outcome = next(texts)
            if number <= _ROWS_SHOWN or number > len(trial.rows):
                row = "" if place else str(number) if number <= len(trial.rows) else "1"
                took = "" if place else f"{seconds * 1000:.1f}"
                rows.append((row, _short(sample["output_text"], _TEXT_SHOWN), _named(outcome), took, _details(outcome)))
    print_list(out, _COLUMNS, rows)
    if len(trial.rows) > _ROWS_SHOWN:
        out.print(f"[dim]rows {_ROWS_SHOWN + 1} to {len(trial.rows)} are not shown, and counted below[/]")


def _show_summary(trial: Trial, summary: Summary, empty: Outcome) -> None:
    kinds = ", ".join(f"{kind} {count}" for kind, count in summary.kinds.items())
    out.print()
    out.print(f"completions   {summary.completions}, of {escape(trial.source)}, and an empty one: {_named(empty)}")
    out.print(
        f"outcomes      scored {summary.share(len(summary.scores)):.1%}, "
        f"not applicable {summary.share(summary.not_applicable):.1%}, "
        f"failed {summary.share(sum(summary.kinds.values())):.1%}" + (f" ({kinds})" if kinds else "")
    )
    if summary.scores:
        spread = f"from {min(summary.scores):.4g} to {max(summary.scores):.4g}"
        out.print(f"score         mean {summary.mean:.4g}, standard deviation {summary.deviation:.4g}, {spread}")
        if not any(summary.scores):
            out.print(f"[yellow]{_ALL_ZERO}[/]")
    out.print(
        f"time          p50 {summary.quantile(0.5) * 1000:.1f} ms, p95 {summary.quantile(0.95) * 1000:.1f} ms a row"
    )


def _show_failures(summary: Summary) -> None:
    for failure in summary.failed:
        out.print(f"\n[bold red]{failure.kind}[/] {escape(failure.message)}")
        if failure.traceback:
            out.print(f"[dim]{escape(failure.traceback)}[/]")


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return escape(f"{line[:most]}…" if len(line) > most else line) or "[dim](empty)[/]"


def _named(outcome: Outcome) -> str:
    if isinstance(outcome, Score):
        return f"[green]{outcome.value:.4g}[/]"
    return f"[red]{outcome.kind}[/]" if isinstance(outcome, Failure) else "[yellow]not applicable[/]"


def _details(outcome: Outcome) -> str:
    if isinstance(outcome, Failure):
        return _short(outcome.message, _FAILURE_SHOWN)
    if not isinstance(outcome, Score):
        return ""
    parts = ", ".join(f"{name} {value:.4g}" for name, value in outcome.components.items())
    notes = ", ".join(f"{name} {text[:_NOTE_SHOWN]!r}" for name, text in outcome.notes.items())
    return escape(outcome.sample_fault or ", ".join(filter(None, (parts, notes))))
