"""/v1/models: base models and trained checkpoints. Ids hold slashes."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from ..answers import ready
from ..context import Here
from ..kept import KeptRoute
from ..model_removal import remove
from ..responses.service import DeletedModel, ModelList, ModelObject
from ..schemas import model_object

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=KeptRoute)


@router.get("", response_model=ModelList)
async def list_models(here: Here) -> Response:
    """Everything that may stand in a job's `model` by name."""
    return ready({"object": "list", "data": [model_object(m) for m in await here.models.all()]})


@router.get("/{name:path}", response_model=ModelObject)
async def retrieve(here: Here, name: str) -> Response:
    """One model."""
    return ready(model_object(await here.models.get(name)))


@router.delete("/{name:path}", response_model=DeletedModel)
async def delete(here: Here, name: str) -> Response:
    """Deletes a trained model's checkpoint. Refused while an unfinished job needs it, and for a base model."""
    await remove(here, name)
    return ready({"id": name, "object": "model", "deleted": True})
