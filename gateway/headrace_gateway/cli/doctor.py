"""`headrace doctor`: prints a report of the machine, one line for each finding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from headrace_core.errors import InvalidRequest

from .common import LOCAL, AsJson, Url, out, print_json, service_settings

if TYPE_CHECKING:
    from ..doctor.machine_checks import Finding

command = typer.Typer(add_completion=False, rich_markup_mode=None)
_STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@command.command()
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also start Redis and Ray and import vLLM; takes up to minutes.")
    ] = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
) -> None:
    """Check what is installed and what this machine can do. Exit code 1 if a check fails.

    The service's settings are read from the environment, as `headrace serve` reads them.
    """
    findings: list[Finding] = []
    for finding in _findings(deep, url):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def _findings(deep: bool, url: str) -> Iterator[Finding]:
    """The findings. If the settings are invalid, that is a finding, and the machine is checked with the defaults."""
    from headrace_core.config.service_settings import Settings

    from ..doctor.machine_checks import CHECKS, DEEP, Finding, examined

    try:
        settings = service_settings()
    except InvalidRequest as error:
        yield Finding("fail", "settings", error.message, "correct the variable; the checks below use the defaults")
        settings = Settings.model_construct()
    yield from examined(CHECKS + (DEEP if deep else ()), settings, url)


def _show(finding: Finding) -> None:
    level = f"[{_STYLE[finding.level]}]{finding.level:4}[/]"
    out.print(f"{level} {finding.what:14} {escape(finding.found)}", highlight=False)
    if finding.remedy:
        out.print(f"{'':20}[dim]→ {escape(finding.remedy)}[/]", highlight=False)
