"""/v1/models: base models and trained checkpoints. Ids hold slashes."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from headrace_core.errors import NotFound

from ..answers import ready
from ..context import Here
from ..responses.service import ModelList, ModelObject
from ..schemas import model_object

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", response_model=ModelList)
async def list_models(here: Here) -> Response:
    """Everything that may stand in a job's `model` by name."""
    return ready({"object": "list", "data": [model_object(m) for m in await here.models.all()]})


@router.get("/{name:path}", response_model=ModelObject)
async def retrieve(here: Here, name: str) -> Response:
    """One model."""
    for model in await here.models.all():
        if model.name == name:
            return ready(model_object(model))
    raise NotFound(f"no model {name!r}", param="model", code="model_not_found")
