"""Replays the install steps of an image without a Docker engine: `python docker/replay.py gateway`.

    Dockerfile ─► stages of the target ─► ARG and ENV ─► COPY: into an empty folder that stands for WORKDIR
                                                     └─► RUN python …: in a new virtual environment, in that folder

The steps are read from the Dockerfile, not repeated here. What they install is what the image installs, except for
what comes from Debian: RUN lines that do not begin with `python` are named and left out. Exit code 0 where every step
succeeded; the last one of each target inspects what it may import and must not hold.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
IGNORE = ROOT / "docker" / "Dockerfile.dockerignore"
STEP_SECONDS = 1800


class Unreadable(Exception):
    """A Dockerfile that says something this replay does not understand."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str
    text: str


@dataclass(slots=True)
class Stage:
    """`FROM parent AS name`, and what follows it."""

    name: str
    parent: str
    instructions: list[Instruction] = field(default_factory=list)


def read(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, in its order. Raises `Unreadable`."""
    stages: dict[str, Stage] = {}
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", rest)
            if match is None:
                raise Unreadable(f"a stage without a name: {line}")
            stages[match[2]] = Stage(match[2], match[1])
        elif stages:
            stages[next(reversed(stages))].instructions.append(Instruction(name, rest.strip()))
        else:
            raise Unreadable(f"before the first FROM: {line}")
    return stages


def chain(stages: dict[str, Stage], target: str) -> list[Stage]:
    """The stages that make `target`, the first one first."""
    found: list[Stage] = []
    name = target
    while name in stages:
        found.insert(0, stages[name])
        name = stages[name].parent
    return found


def replay(stages: list[Stage], folder: Path) -> None:
    """Carry the steps out below the empty `folder`. Raises `subprocess.CalledProcessError` for one that fails."""
    app, environment = folder / "app", folder / "environment"
    app.mkdir()
    venv.create(environment, with_pip=True)
    variables = {**os.environ, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(environment)}
    variables.pop("PYTHONPATH", None)
    for stage in stages:
        for step in stage.instructions:
            if step.name in ("ARG", "ENV"):
                variables |= assignments(step, variables)
            elif step.name == "COPY":
                copy(step.text, app)
            elif step.name == "RUN":
                run(stage.name, step.text, app, variables)


def assignments(step: Instruction, variables: dict[str, str]) -> dict[str, str]:
    """NAME=value pairs; an ARG that the environment gives keeps that value, as with --build-arg."""
    pairs = dict(word.split("=", 1) for word in shlex.split(step.text))
    pairs.pop("PIP_NO_CACHE_DIR", None)  # it keeps a layer small; here, a cache saves downloads
    return {k: variables.get(k, v) if step.name == "ARG" else v for k, v in pairs.items()}


def allowed() -> list[str]:
    """Paths of the build context: what the ignore file, which begins by ignoring all, lets in again."""
    lines = IGNORE.read_text().splitlines()
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def copy(text: str, app: Path) -> None:
    """COPY source destination: `. .`, or one path of the context to the same path. Raises `Unreadable` for others."""
    source, destination = shlex.split(text)
    if source != destination:
        raise Unreadable(f"this replay copies to the same path only: COPY {text}")
    if source != "." and not any(source == path or source.startswith(path + "/") for path in allowed()):
        raise Unreadable(f"COPY {source}: {IGNORE.name} keeps it out of the context")
    for path in allowed() if source == "." else [source]:
        origin, target = ROOT / path, app / path
        if origin.is_dir():
            shutil.copytree(origin, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, target)


def run(stage: str, command: str, app: Path, variables: dict[str, str]) -> None:
    if not command.startswith("python "):
        print(f"{stage}: left out, needs the image's system: {command[:90]}", flush=True)
        return
    began = time.monotonic()
    subprocess.run(["sh", "-c", command], cwd=app, env=variables, check=True, timeout=STEP_SECONDS)
    print(f"{stage}: {time.monotonic() - began:.1f} s: {command[:90]}", flush=True)


def main() -> int:
    stages = read(DOCKERFILE.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=list(stages))
    target = parser.parse_args().target
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-image-") as folder:
        try:
            replay(chain(stages, target), Path(folder))
        except subprocess.CalledProcessError as error:
            print(f"{target}: exit code {error.returncode} from: {error.cmd[-1]}", file=sys.stderr)
            return 1
        held = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{target}: all steps replayed in {time.monotonic() - began:.0f} s, {held / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
