"""/v1/models: base models and trained checkpoints. Ids hold slashes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from headrace_core.errors import NotFound

from ..context import Here
from ..schemas import model_object

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(here: Here) -> dict[str, Any]:
    """Everything that may stand in a job's `model` by name."""
    return {"object": "list", "data": [model_object(m) for m in await here.models.all()]}


@router.get("/{name:path}")
async def retrieve(here: Here, name: str) -> dict[str, Any]:
    """One model."""
    for model in await here.models.all():
        if model.name == name:
            return model_object(model)
    raise NotFound(f"no model {name!r}", param="model", code="model_not_found")
