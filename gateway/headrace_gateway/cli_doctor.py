"""`headrace doctor`: a report of the machine, a line a finding."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from .cli_common import LOCAL, AsJson, Url, out, print_json, service_settings
from .doctor import CHECKS, DEEP, Finding

_STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also start Redis and Ray, and import vLLM: up to minutes.")
    ] = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
) -> None:
    """What is installed, what this machine can do, and what is wrong. Exit code 1 if something fails.

    The service's settings are taken from the environment, as `headrace serve` would.
    """
    settings = service_settings()
    found: list[Finding] = []
    for check in CHECKS + (DEEP if deep else ()):
        for finding in check(settings, url):
            found.append(finding)
            if not as_json:
                _show(finding)
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.level == "fail" for finding in found):
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    level = f"[{_STYLE[finding.level]}]{finding.level:4}[/]"
    out.print(f"{level} {finding.what:14} {escape(finding.found)}", soft_wrap=True, highlight=False)
    if finding.remedy:
        out.print(f"{'':20}[dim]→ {escape(finding.remedy)}[/]", soft_wrap=True, highlight=False)
