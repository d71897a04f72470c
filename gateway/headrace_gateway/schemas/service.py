"""Models, and whether the service is well."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import ResponseModel


class ModelObject(ResponseModel):
    """A model that may stand in a job's `model`."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Field(description="Unix seconds.")]
    owned_by: Annotated[str, Field(description="`headrace`, or the job that trained it.")]
    path: Annotated[str, Field(description="The model's folder on the service's machine.")]


class ModelList(ResponseModel):
    """Every model."""

    object: Literal["list"]
    data: list[ModelObject]


class DeletedModel(ResponseModel):
    """A trained model that is no more."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]


class Alive(ResponseModel):
    """The process answers."""

    status: Literal["ok"]


class Ready(ResponseModel):
    """The service can work."""

    status: Literal["ready"]
