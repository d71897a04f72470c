"""What users and stored data rely on, read from the code: each `…_surface` is held against a file of this folder.

    .venv/bin/python -m tests.golden.surface        write the files anew; only for a change that is meant to be seen

They say nothing of texts that are free to change (descriptions, help, names of classes).
"""

from __future__ import annotations

import ast
import inspect
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog
import typer.main
from pydantic import BaseModel

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.redis_access import keys
from headrace_core.types import metrics
from headrace_core.types.job import Event
from headrace_gateway.app import create_app
from headrace_gateway.cli import main as cli
from headrace_gateway.exporters import prometheus
from headrace_lab.paths import ROOT
from headrace_simulation import simulate
from headrace_simulation.fault_plan import plan
from headrace_simulation.redis_port import Server
from headrace_simulation.schedule import Schedule, drive

HERE = Path(__file__).parent
PRODUCT = ("core", "rollout", "learner", "rewards", "gateway", "controller")
SEEDS = range(900, 940)
"""Schedules of the simulation."""
_FREE_TEXT = {"description", "title", "summary"}
_NAMES = {"properties", "schemas", "patternProperties", "$defs", "paths", "responses", "headers", "securitySchemes"}
"""In an OpenAPI document or JSON schema, the keys below which keys are names, not words of the standard."""


def _strict(value: Any, names: bool = False) -> Any:
    """A schema without its free texts and examples."""
    if isinstance(value, list):
        return [_strict(each) for each in value]
    if not isinstance(value, dict):
        return value
    dropped = set() if names else _FREE_TEXT | {"example", "examples"}
    return {key: _strict(each, not names and key in _NAMES) for key, each in value.items() if key not in dropped}


def redis_keys() -> list[str]:
    """Every key and key pattern that the keys module spells."""
    job = keys.JobKeys("ftjob-1")
    found = [value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)]
    found += keys.ADMISSION_SCRIPT
    functions = [each for _, each in inspect.getmembers(keys, inspect.isfunction) if each.__module__ == keys.__name__]
    found += [each("x") for each in functions]
    for name, member in inspect.getmembers(keys.JobKeys):
        if isinstance(member, property):
            value = getattr(job, name)
            found += [value] if isinstance(value, str) else value
        elif inspect.isfunction(member) and not name.startswith("_"):
            found.append(getattr(job, name)("x"))
    return sorted({value for value in found if value.startswith("headrace:")})


def openapi() -> dict[str, Any]:
    """The gateway's document: paths, parameters, shapes and their names, status codes."""
    document = create_app(Settings(), "redis://127.0.0.1:1").openapi()
    document.pop("info")
    document.pop("tags")
    return _strict(document)


def prometheus_families() -> dict[str, Any]:
    """Name → type and labels."""
    return {name: [made.__name__, list(labels)] for name, (made, _, labels) in prometheus._SERIES.items()}


def settings() -> dict[str, Any]:
    """Names, types, bounds and defaults: of a job and of the service."""
    models: dict[str, type[BaseModel]] = {"job": Hyperparameters, "service": Settings}
    return {name: _strict(model.model_json_schema()) for name, model in models.items()}


def measurements() -> dict[str, list[str]]:
    """Struct of a measurement → its fields; of an event, too."""
    structs: list[Any] = [m for _, m in inspect.getmembers(metrics, inspect.isclass) if issubclass(m, msgspec.Struct)]
    return {struct.__name__: list(struct.__struct_fields__) for struct in (*structs, Event)}


def command_line() -> dict[str, list[str]]:
    """Command → its arguments and options."""

    def walk(command: Any, path: str) -> Iterator[tuple[str, list[str]]]:
        yield path, sorted(" ".join(p.opts + p.secondary_opts) for p in command.params)
        context = typer.Context(command)
        for name in getattr(command, "list_commands", lambda _: [])(context):
            yield from walk(command.get_command(context, name), f"{path} {name}")

    return dict(walk(typer.main.get_command(cli.app), "headrace"))


def error_codes() -> list[str]:
    """Every text that the code assigns to, or gives as, a `code`."""
    found = set[str]()
    for path in (p for folder in PRODUCT for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            found |= set(_codes(node))
    return sorted(found)


def _codes(node: ast.AST) -> Iterator[str]:
    value: ast.expr | None = None
    match node:
        case ast.Assign(targets=[ast.Name(id="code")]) | ast.AnnAssign(target=ast.Name(id="code")):
            value = node.value
        case ast.keyword(arg="code"):
            value = node.value
        case ast.Call(func=ast.Name(id="JobError"), args=[first, *_]):
            value = first
    for each in [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]:
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


class _Recorded(Schedule):
    """A schedule whose events are read before they are removed."""

    _server: Server
    events: list[Event]

    @classmethod
    def of(cls, server: Server, seed: int, folder: Path) -> _Recorded:
        made = cls(server, plan(seed), folder, None, False)
        made._server, made.events = server, []
        return made

    def clear(self) -> list[Any]:
        (entries,) = self._server.send([("XRANGE", self.world.keys.history("event"), "-", "+")])
        for _, fields in entries:
            data = dict(zip(fields[::2], fields[1::2], strict=True))[b"data"]
            self.events.append(msgspec.json.decode(data, type=Event))
        return super().clear()


def simulation() -> dict[str, Any]:
    """Of fixed seeds: how many calls, faults and endings; and which keys the `data` of their events has."""
    configured = structlog.get_config()
    simulate.silence()
    try:
        return _simulated()
    finally:
        structlog.configure(**configured)  # the tests after this one read logs


def _simulated() -> dict[str, Any]:
    events, faults, ended = dict[str, int](), Counter[str](), Counter[str]()
    data = set[tuple[str, ...]]()
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "redis") as server:
        schedules = (_Recorded.of(server, seed, Path(folder)) for seed in SEEDS)
        for schedule, error in drive(server, schedules, 16):
            assert error is None, error
            assert isinstance(schedule, _Recorded)
            events[str(schedule.plan.seed)] = schedule.world.observer.events
            faults += schedule.happened
            ended[schedule.world.observer.status] += 1
            data |= {(e.level, e.type, *sorted(e.data or ())) for e in schedule.events}
    return {
        "calls": {seed: events[seed] for seed in sorted(events)},
        "faults": dict(sorted(faults.items())),
        "ended": dict(sorted(ended.items())),
        "event_data": sorted(map(list, data)),
    }


SURFACES: dict[str, Callable[[], Any]] = {
    each.__name__: each
    for each in (
        redis_keys, openapi, prometheus_families, settings, measurements, command_line, error_codes, simulation,
    )
}  # fmt: skip


def text(name: str) -> str:
    """As it stands in the file."""
    return json.dumps(SURFACES[name](), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    for name in SURFACES:
        (HERE / f"{name}.json").write_text(text(name))


if __name__ == "__main__":
    main()
