"""/v1/models: base models and trained checkpoints. Ids hold slashes."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from ..context import Context
from ..operations.model_removal import remove
from ..schemas.service import DeletedModel, ModelList, ModelObject
from ..views.objects import model_object
from ..web.durable_route import DurableRoute
from ..web.json_response import json_response

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=DurableRoute)


@router.get("", response_model=ModelList)
async def list_models(here: Context) -> Response:
    """Everything that may stand in a job's `model` by name."""
    return json_response(ModelList(object="list", data=[model_object(m) for m in await here.models.all()]))


@router.get("/{name:path}", response_model=ModelObject)
async def retrieve(here: Context, name: str) -> Response:
    """One model."""
    return json_response(model_object(await here.models.get(name)))


@router.delete("/{name:path}", response_model=DeletedModel)
async def delete(here: Context, name: str) -> Response:
    """Deletes a trained model's checkpoint. Refused while an unfinished job needs it, and for a base model."""
    await remove(here, name)
    return json_response(DeletedModel(id=name, object="model", deleted=True))
