"""`job.toml`: a job as the user writes it down. Paths in it are relative to the file itself.

model = "headrace/tiny-adder"             # or the path of a model folder: "./qwen"
training_file = "train.jsonl"             # or a task: "reasoning_gym:chain_sum?size=1000"
validation_file = "validation.jsonl"      # optional, like suffix, seed, [metadata], [[integrations]]

[grader]
type = "function"
name = "correct"
function = "reward.py:correct"

[hyperparameters]
n_steps = 60
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_core.errors import InvalidData
from headrace_core.storage.dataset import names_task

_REQUIRED = ("model", "training_file", "grader")
_OPTIONAL = ("validation_file", "hyperparameters", "suffix", "seed", "metadata", "integrations")


@dataclass(frozen=True, slots=True)
class JobFile:
    """What a job file says: the request's body, and the files to upload for it."""

    body: dict[str, Any]
    uploads: dict[str, Path]
    """By the name of the body's field that takes the uploaded file's id."""


def read(path: Path) -> JobFile:
    """Raises `InvalidData`, naming what to change."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # as TOML is, whatever the locale
    except OSError as error:
        raise InvalidData(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidData(f"{path}: not TOML: {error}") from error
    for name in document:
        if name not in _REQUIRED + _OPTIONAL:
            known = ", ".join(_REQUIRED + _OPTIONAL)
            raise InvalidData(f"{path}: unknown name {name!r}; known: {known}", param=name)
    for name in _REQUIRED:
        if name not in document:
            raise InvalidData(f"{path}: needs {name!r}", param=name)
    folder = path.absolute().parent
    grader, hyperparameters = with_absolute_paths(document.pop("grader"), folder), document.pop("hyperparameters", {})
    for name in ("training_file", "validation_file"):
        if not isinstance(document.get(name, ""), str):
            raise InvalidData(f"{path}: {name}: a text is needed, not {document[name]!r:.100}", param=name)
    document["model"] = _model(path, document["model"])
    files = [
        name for name in ("training_file", "validation_file") if name in document and not names_task(document[name])
    ]
    uploads: dict[str, Path] = {name: folder / document.pop(name) for name in files}
    for name, upload in uploads.items():
        if not upload.is_file():
            raise InvalidData(f"{path}: {name}: there is no file {upload}", param=name)
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": hyperparameters}}
    return JobFile(document | {"method": method}, uploads)


def _model(path: Path, model: Any) -> Any:
    """A model folder's path made absolute; the name of a model as it is. A name may look like a path, and is one where
    there is a model folder of that name beside the job file. What is no text is left to the gateway to refuse."""
    if not isinstance(model, str):
        return model
    folder = Path(os.path.normpath(path.absolute().parent / model))  # ".." in a model's name would be lost in addresses
    if (folder / "config.json").is_file():
        return str(folder)
    if model.startswith(("./", "../")):
        raise InvalidData(f"{path}: model: {folder} is not a model folder: it holds no config.json", param="model")
    return model


def with_absolute_paths(grader: Any, folder: Path) -> Any:
    """Wherever a grader, or one inside it, names a function by file, the file's path made absolute."""
    if isinstance(grader, list):
        return [with_absolute_paths(g, folder) for g in grader]
    if not isinstance(grader, dict):
        return grader
    resolved = {k: with_absolute_paths(v, folder) for k, v in grader.items()}
    function = grader.get("function")
    if grader.get("type") == "function" and isinstance(function, str) and ".py:" in function:
        resolved["function"] = os.path.normpath(folder / function)
    return resolved
