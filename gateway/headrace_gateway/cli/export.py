"""`headrace jobs export`: a job's measurements as files or as a run, at any time and from anywhere."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..client import Client
from ..exporters.targets import Target
from .common import LOCAL, JobId, Url, fail, out


def export_job(
    job_id: JobId,
    target: Annotated[Target, typer.Argument(help="Format of the export.", show_default=False)],
    folder: Annotated[Path | None, typer.Option("--out", help="Folder to write to. [default: ./JOB-TARGET]")] = None,
    project: Annotated[str, typer.Option(help="Project at Weights & Biases, if the job names none.")] = "headrace",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with new measurements until the job ends.")
    ] = False,
    url: Url = LOCAL,
) -> None:
    """Export a job's measurements: JSON lines, a TensorBoard event file, or a run at Weights & Biases.

    Another run with the same folder adds the new measurements. Ctrl-C stops following.
    """
    from ..exporters.export_loop import FromGateway, export

    folder = folder or Path(f"{job_id}-{target}")
    with Client(url) as client:
        job = client.job(job_id)
        options = {"project": project}
        for integration in job["integrations"]:
            if integration["type"] == target:
                options |= integration[target]
        made = {"hyperparameters": job["method"]["reinforcement"]["hyperparameters"]}
        described = {name: job[name] for name in ("id", "created_at", "model")} | made
        source = FromGateway(client, job_id)

        carried = export(source, target, folder, described, options, follow=follow, stop=asyncio.Event())
        try:
            cursor = asyncio.run(carried)
        except KeyboardInterrupt:
            fail(f"stopped; the same command goes on from where {folder} is", 130)
    state = "complete" if cursor.complete else "so far"
    out.print(f"{escape(str(folder))} holds {job_id} up to step {cursor.step}, {state}")
