"""docs/cli.md: every command of `headrace`, from the command line's own descriptions. Written by generate.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import typer
import typer.main

from headrace_gateway.cli import main

INTRO = """\
# The command line

<!-- Written by docs/generate.py. Change the commands' docstrings and options, then run it. -->

This page lists every command of `headrace`. Commands that use a gateway take its address from `--url` or
`HEADRACE_URL`, and the API key, if keys are required, from `HEADRACE_API_KEY`. An error that the user can correct is
one line on the error stream, with exit code 1. `--json` prints JSON for programs.
"""


def page() -> str:
    """The text."""
    root: Any = typer.main.get_command(main.app)
    return INTRO + "".join(_commands("headrace", root))


def _commands(path: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from _commands(f"{path} {name}", command.get_command(context, name))
    else:
        yield _section(path, command)


def _section(path: str, command: Any) -> str:
    paragraphs = [" ".join(part.split()) for part in command.help.split("\n\n")]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([path, *(_argument(p) for p in arguments)])
    rows = "".join(f"| {_name(p)} | {_meaning(p)} |\n" for p in command.params if _meaning(p))
    table = f"\n| | |\n| --- | --- |\n{rows}" if rows else ""
    return f"\n## `{usage}`\n\n" + "\n\n".join(paragraphs) + "\n" + table


def _argument(parameter: Any) -> str:
    shown = parameter.metavar or parameter.name.upper()
    return str(shown) if parameter.required or shown.startswith("[") else f"[{shown}]"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return "`" + "`, `".join([*parameter.opts, *parameter.secondary_opts]) + "`"


def _meaning(parameter: Any) -> str:
    parts = [parameter.help or ""]
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        parts.append("One of " + ", ".join(f"`{choice}`" for choice in get_args(annotation)) + ".")
    default = parameter.default
    if default not in (None, False, True) and parameter.param_type_name == "option":
        parts.append(f"Default `{default}`.")
    return " ".join(" ".join(parts).split()).replace("|", "\\|")
