"""Names of models, and the folders they are: the shipped ones, subfolders of models_dir, trained ones, plain paths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_core.errors import InvalidRequest
from headrace_core.jobs import JobStore
from headrace_core.settings import Settings

_EXAMPLES = Path(__file__).parents[2] / "examples"
_SHIPPED = {f"headrace/tiny-{name}": _EXAMPLES / name / "model" for name in ("adder", "longtail")}
_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True, slots=True)
class Model:
    """A folder in Hugging Face format, and the name it is offered under."""

    name: str
    path: Path
    created_at: float
    owner: str

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens by the model's config.json; None where that does not say."""
        config: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        config |= config.get("text_config") or {}
        return next((int(config[f]) for f in _CONTEXT_FIELDS if config.get(f)), None)


class Models:
    """Everything that may stand in a job's `model`."""

    def __init__(self, settings: Settings, jobs: JobStore, private: Path | None = None) -> None:
        """With `private`, a folder below that one is not to be named by its path."""
        self._settings = settings
        self._folder = settings.models_dir
        self._jobs = jobs
        self._private = private

    def of(self, jobs: JobStore) -> Models:
        """The base models, and what those jobs have trained: no path leads to what others have."""
        return Models(self._settings, jobs, self._settings.data_dir.resolve())

    async def all(self) -> list[Model]:
        """Base models first, then trained ones, newest first."""
        return self._base() + await self._trained()

    async def resolve(self, name: str) -> Model:
        """The model of that name, or at that absolute path. Raises `InvalidRequest` that lists the known ones."""
        folder = Path(name)
        if folder.is_absolute():
            if not _is_model(folder) or self._is_private(folder):
                raise InvalidRequest(
                    f"{name} is not a model folder: it holds no config.json", param="model", code="model_not_found"
                )
            return _model(name, folder, "local")
        known = {model.name: model for model in await self.all()}
        if name not in known:
            raise InvalidRequest(
                f"no model {name!r}; known: {', '.join(known) or 'none'}, or the absolute path of a model folder",
                param="model",
                code="model_not_found",
            )
        return known[name]

    def _is_private(self, folder: Path) -> bool:
        return self._private is not None and folder.resolve().is_relative_to(self._private)

    def _base(self) -> list[Model]:
        found = dict(_SHIPPED)
        if self._folder is not None and self._folder.is_dir():
            found |= {folder.name: folder.resolve() for folder in sorted(self._folder.iterdir())}
        return [_model(name, path, "headrace") for name, path in found.items() if _is_model(path)]

    async def _trained(self) -> list[Model]:
        found: dict[str, Model] = {}
        for job in await self._jobs.all():
            saved = [(c.model, c) for c in await self._jobs.checkpoints(job.id)]
            if job.fine_tuned_model is not None and saved:
                saved.insert(0, (job.fine_tuned_model, saved[0][1]))
            for name, checkpoint in saved:
                if _is_model(checkpoint.model_path):
                    found[name] = Model(name, checkpoint.model_path, checkpoint.created_at, job.id)
        return list(found.values())


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _model(name: str, path: Path, owner: str) -> Model:
    return Model(name, path, (path / "config.json").stat().st_mtime, owner)
