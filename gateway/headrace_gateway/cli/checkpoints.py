"""`headrace checkpoints`: which models a job has saved, and one of them as a folder of your own."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape

from headrace_core.errors import InvalidRequest, NotFound

from ..client import Client
from ..models.model_folder import copy
from .common import LOCAL, AsJson, JobId, Url, out, print_json
from .tables import Column, print_list

checkpoints = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List and export the checkpoints of jobs.")
_MAX_LISTED = 100


@checkpoints.command("list")
def list_checkpoints(job_id: JobId, as_json: AsJson = False, url: Url = LOCAL) -> None:
    """List a job's checkpoints, newest first."""
    with Client(url) as client:
        saved_checkpoints = client.job(job_id, "/checkpoints", limit=_MAX_LISTED)["data"]
    if as_json:
        return print_json(saved_checkpoints)
    columns = [Column("step"), Column("checkpoint"), Column("created"), Column("model", folds=True)]
    print_list(out, columns, [_row(saved) for saved in saved_checkpoints])


@checkpoints.command()
def export(
    job_id: JobId,
    folder: Annotated[Path, typer.Argument(help="The folder to create; it must not exist.", show_default=False)],
    step: Annotated[int | None, typer.Option(min=0, help="Step of the checkpoint. [default: the newest]")] = None,
    url: Url = LOCAL,
) -> None:
    """Export a checkpoint as a plain Hugging Face folder: weights with adapters merged, tokenizer, chat template.

    The gateway reports the checkpoint's path and this command copies it, so run the command on the gateway's machine
    or on one that mounts the data folder at the same path. FOLDER is created only when the copy is complete.
    """
    with Client(url) as client:
        saved = _chosen(client, job_id, step)
        name = saved["fine_tuned_model_checkpoint"]
        path = Path(client.get(f"/v1/models/{quote(name, safe='')}")["path"])
    size = copy(path, folder)
    out.print(
        f"step {saved['step_number']} of {job_id} is at [bold]{escape(str(folder))}[/], {size / 1e6:.1f} MB",
    )


def _row(saved: dict[str, Any]) -> list[str]:
    created = datetime.fromtimestamp(saved["created_at"]).strftime("%m-%d %H:%M:%S")
    return [str(saved["step_number"]), saved["id"], created, escape(saved["fine_tuned_model_checkpoint"])]


def _chosen(client: Client, job_id: str, step: int | None) -> dict[str, Any]:
    saved_checkpoints: list[dict[str, Any]] = client.job(job_id, "/checkpoints", limit=_MAX_LISTED)["data"]
    if not saved_checkpoints:
        raise NotFound(f"job {job_id} has saved no checkpoint yet")
    if step is None:
        return saved_checkpoints[0]
    steps = {saved["step_number"]: saved for saved in saved_checkpoints}
    if step not in steps:
        raise InvalidRequest(f"job {job_id} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return steps[step]
