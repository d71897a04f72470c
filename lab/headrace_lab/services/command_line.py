"""The command line in this process, as a test types it."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from headrace_gateway.cli import main


def headrace(*arguments: str, **environment: str) -> Result:
    """What `headrace` with these arguments prints, and how it ends; its error, if any, is the result's `exception`."""
    return CliRunner(env=environment).invoke(main.app, arguments)
