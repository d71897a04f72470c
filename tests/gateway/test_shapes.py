"""Each JSON answer has one shape, defined once; `test_conformance` holds live answers to it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

import headrace_gateway
from headrace_core.config.service_settings import Settings
from headrace_gateway.app import create_app
from headrace_gateway.openapi.document import operations

APP = create_app(Settings(), "redis://127.0.0.1:1")  # nothing connects before it is started
ROUTES = [route for route in APP.routes if isinstance(route, APIRoute) and route.include_in_schema]
NO_JSON = {"/metrics", "/v1/files/{file_id}/content", "/v1/fine_tuning/jobs/{job_id}/stream"}


def shapes_in(annotation: Any) -> Iterator[type]:
    """The shapes that a type is made of."""
    if is_typeddict(annotation) or (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
        yield annotation
        hints = get_type_hints(annotation)
        for name in annotation.__annotations__:
            yield from shapes_in(hints[name])
    elif get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        for part in get_args(annotation):
            yield from shapes_in(part)


def test_every_route_with_a_json_answer_has_a_shape() -> None:
    bare = {route.path for route in ROUTES if route.response_model is None or not [*shapes_in(route.response_model)]}
    assert bare == NO_JSON
    answers = {
        path for path, _, o in operations(APP.openapi()) if "application/json" in o["responses"]["200"]["content"]
    }
    assert answers == {route.path_format for route in ROUTES} - {path.replace(":path", "") for path in bare}


@pytest.mark.parametrize("route", ROUTES, ids=[route.unique_id for route in ROUTES])
def test_a_shape_is_a_typed_dict_by_which_what_is_built_is_checked(route: APIRoute) -> None:
    assert not [shape for shape in shapes_in(route.response_model) if not is_typeddict(shape)]


def test_a_shape_is_defined_once() -> None:
    named: dict[str, set[type]] = {}
    for module in pkgutil.walk_packages(headrace_gateway.__path__, "headrace_gateway."):
        if not module.name.endswith("__main__"):
            for name, found in vars(importlib.import_module(module.name)).items():
                if inspect.isclass(found) and not name.startswith("_"):
                    named.setdefault(found.__name__, set()).add(found)
    shapes = {shape for route in ROUTES for shape in shapes_in(route.response_model)}
    assert len(shapes) > 50
    assert not {shape.__name__: named[shape.__name__] for shape in shapes if len(named[shape.__name__]) != 1}


def test_a_second_field_or_a_missing_one_is_found() -> None:
    (shape,) = {each for route in ROUTES for each in shapes_in(route.response_model) if each.__name__ == "DeletedFile"}
    right = {"id": "file-1", "object": "file", "deleted": True}
    assert TypeAdapter(shape).validate_python(right) == right
    for wrong in (right | {"bytes": 1}, {"id": "file-1", "object": "file"}):
        with pytest.raises(ValidationError):
            TypeAdapter(shape).validate_python(wrong)
