"""Resolves the names of models to folders: shipped models, subfolders of models_dir, trained models, plain paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.errors import Damaged, InvalidRequest, NotFound
from headrace_core.jobs.job_store import JobStore
from headrace_core.types.job import Checkpoint, Job

from .model_folder import RESTORE, json_of

_EXAMPLES = Path(__file__).parents[3] / "examples"
_SHIPPED = {f"headrace/tiny-{name}": _EXAMPLES / name / "model" for name in ("adder", "longtail")}
_TRAINED = re.compile(r"ft:.+:headrace:[^:]*:(?P<job>[^:]+?)(:ckpt-step-\d+)?", re.DOTALL)
"""The names of trained models, as `headrace_core.types.job.model_name` forms them."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_SUGGESTIONS, _MAX_NAME = 3, 200
"""Most similar names that an error lists, and most characters of the requested name that it repeats."""
_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True, slots=True)
class Model:
    """A folder in Hugging Face format, and the name under which it is offered."""

    name: str
    path: Path
    created_at: float
    owner: str

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens according to config.json; None if it does not say. Raises `Damaged`."""
        return self._size("context", _CONTEXT_FIELDS)

    def context_for(self, settings: Hyperparameters, param: str) -> int:
        """Most tokens of prompt and completion together: as set by the user, or as many as the model supports.

        Raises `InvalidRequest` with `param` if the user set more; `Damaged`.
        """
        own = self.context
        if own is None or settings.max_context <= own:
            return settings.max_context
        if "max_context" in settings.model_fields_set:
            message = f"max_context is {settings.max_context}, and the model takes {own} tokens"
            raise InvalidRequest(message, param=param)
        return own

    @property
    def vocabulary(self) -> int | None:
        """Size of the vocabulary according to config.json; None if it does not say. Raises `Damaged`."""
        return self._size("vocabulary", ("vocab_size",))

    def _size(self, what: str, names: Sequence[str]) -> int | None:
        """The value of the first of `names` that config.json has; a nested text model's config takes precedence."""
        file = self.path / "config.json"
        config = json_of(file)
        text = config.get("text_config")
        config |= text if isinstance(text, dict) else {}
        size: Any = next((config[name] for name in names if config.get(name)), None)
        if size is None or (type(size) is int and size > 0):
            return size
        raise Damaged(f"{file} gives a {what} of {size!r:.100}: {RESTORE}", param="model")


class Models:
    """The models that a job's `model` can name."""

    def __init__(self, settings: Settings, jobs: JobStore, private: Path | None = None) -> None:
        """`private`: a folder whose subfolders must not be named by their paths."""
        self._settings = settings
        self._folder = settings.models_dir
        self._jobs = jobs
        self._private = private

    def of(self, jobs: JobStore) -> Models:
        """The base models, and the models that `jobs` trained; the models of other owners cannot be named by a path."""
        return Models(self._settings, jobs, self._settings.data_dir.resolve())

    async def all(self) -> list[Model]:
        """All models: base models, then trained ones, newest first."""
        return self._base() + await self._trained()

    async def get(self, name: str) -> Model:
        """The model with that name, found without reading others. Raises a `NotFound` that lists similar names."""
        base = {model.name: model for model in self._base()}
        if name in base:
            return base[name]
        trained = await self.trained(name)
        if trained is None:
            raise NotFound(await self._unknown(name, base), param="model", code="model_not_found")
        job, checkpoint = trained
        return Model(name, checkpoint.model_path, checkpoint.created_at, job.id)

    async def trained(self, name: str) -> tuple[Job, Checkpoint] | None:
        """The job and the checkpoint of a trained model; None if there is no such model."""
        job = await self._job_of(name)
        if job is None:
            return None
        checkpoint = _offered(job, await self._jobs.checkpoints(job.id)).get(name)
        return None if checkpoint is None else (job, checkpoint)

    async def resolve(self, name: str) -> Model:
        """The model with that name, or at that absolute path. Raises an `InvalidRequest` that lists similar names."""
        folder = Path(name)
        if folder.is_absolute():
            if _CONTROL.search(name):
                raise InvalidRequest(
                    f"{name!r:.300}: a model folder whose path has a control character (a line break, say) cannot be "
                    "part of a trained model's name: rename it",
                    param="model",
                    code="model_not_supported",
                )
            if not _is_model(folder) or self._is_private(folder):
                raise InvalidRequest(
                    f"{name} is not a model folder: it holds no config.json", param="model", code="model_not_found"
                )
            return _model(name, folder, "local")
        try:
            return await self.get(name)
        except NotFound as error:
            message = f"{error.message}, and an absolute path of a model folder will do"
            raise InvalidRequest(message, param="model", code="model_not_found") from error

    def _is_private(self, folder: Path) -> bool:
        return self._private is not None and folder.resolve().is_relative_to(self._private)

    def _base(self) -> list[Model]:
        return base_models(self._folder)

    async def _trained(self) -> list[Model]:
        jobs = await self._jobs.all()
        saved = await self._jobs.checkpoints_of([job.id for job in jobs])
        return [
            Model(name, checkpoint.model_path, checkpoint.created_at, job.id)
            for job, checkpoints in zip(jobs, saved, strict=True)
            for name, checkpoint in _offered(job, checkpoints).items()
        ]

    async def _job_of(self, name: str) -> Job | None:
        """The job in a trained model's name."""
        named = _TRAINED.fullmatch(name)
        try:
            return None if named is None else await self._jobs.get(f"ftjob-{named['job']}")
        except NotFound:
            return None

    async def _unknown(self, name: str, base: Iterable[str]) -> str:
        """The error message for an unknown model, with similar base models, or checkpoints of the same job."""
        job = await self._job_of(name)
        others = [] if job is None else list(_offered(job, await self._jobs.checkpoints(job.id)))[:_MAX_SUGGESTIONS]
        known = list(base)
        near = others or difflib.get_close_matches(name[:_MAX_NAME], known, n=_MAX_SUGGESTIONS)
        if near:
            meant = f"did you mean {' or '.join(near)}? "
        else:
            meant = f"a base model is {' or '.join(known[:_MAX_SUGGESTIONS])}; " if known else ""
        return f"no model {name[:_MAX_NAME]!r}: {meant}GET /v1/models lists all there are"


def base_models(folder: Path | None) -> list[Model]:
    """The shipped models, and the subfolders of `folder` (the setting models_dir) that hold one."""
    folders = dict(_SHIPPED)
    if folder is not None and folder.is_dir():
        folders |= {each.name: each.resolve() for each in sorted(folder.iterdir())}
    return [_model(name, path, "headrace") for name, path in folders.items() if _is_model(path)]


def model_at(folder: Path) -> Model | None:
    """The model in that folder, named by its path; None: there is none."""
    return _model(str(folder), folder, "local") if _is_model(folder) else None


def _offered(job: Job, checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """One job's models by name: the trained model (its newest checkpoint), then its checkpoints, newest first."""
    named = [(c.model, c) for c in checkpoints]
    if job.fine_tuned_model is not None and named:
        named.insert(0, (job.fine_tuned_model, checkpoints[0]))
    return {name: checkpoint for name, checkpoint in named if _is_model(checkpoint.model_path)}


def _is_model(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except OSError:  # not a valid file name: too long, say
        return False


def _model(name: str, path: Path, owner: str) -> Model:
    return Model(name, path, (path / "config.json").stat().st_mtime, owner)
