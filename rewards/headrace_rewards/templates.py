"""Templates such as `The answer is {{ item.answer }}`, resolved by walking a path and nothing else.

A template can read `item` (the row) and `sample` (the completion); it cannot call, compute or execute anything. A path
is a root followed by keys (`.name`) and list indexes (`.0` or `[0]`). Text is inserted as it is, other values as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace_rewards.protocol import Sample

SAMPLE_KEYS = ("output_text", "output_json", "output_tools", "choices")

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+|\[\d+\])*", re.ASCII)
_STEP = re.compile(r"\w+", re.ASCII)


class TemplateSyntaxError(ValueError):
    """The template can never be resolved, whatever the row; says where."""


class MissingPath(LookupError):
    """This row or this completion has nothing at the path."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: literal texts and, between them, paths (`len(texts) == len(paths) + 1`)."""

    texts: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, source: str) -> Template:
        """Raises `TemplateSyntaxError` for a placeholder that is not closed, or not a known path."""
        pieces = _PLACEHOLDER.split(source)
        texts, expressions = tuple(pieces[0::2]), pieces[1::2]
        for text in texts:
            if "{{" in text:
                raise TemplateSyntaxError(f"'{{{{' without its '}}}}' in {source!r}")
        return cls(texts, tuple(_parse_path(expression.strip()) for expression in expressions))

    def render(self, sample: Sample) -> str:
        """The text for one sample; raises `MissingPath`."""
        scope = {"item": sample.item, "sample": sample.as_openai()} if self.paths else {}
        pieces = [self.texts[0]]
        for path, text in zip(self.paths, self.texts[1:], strict=True):
            pieces += (_as_text(_resolve(scope, path)), text)
        return "".join(pieces)


def _parse_path(expression: str) -> tuple[str, ...]:
    if not _PATH.fullmatch(expression):
        raise TemplateSyntaxError(
            f"'{{{{ {expression} }}}}' is not a path such as 'item.answer', 'item.choices[0]' or 'sample.output_text'"
        )
    path = tuple(_STEP.findall(expression))
    if path[0] not in ("item", "sample"):
        raise TemplateSyntaxError(f"'{expression}' starts with '{path[0]}'; a path starts with 'item' or 'sample'")
    if path[0] == "sample" and len(path) > 1 and path[1] not in SAMPLE_KEYS:
        raise TemplateSyntaxError(f"'sample' has no '{path[1]}'; it has {', '.join(SAMPLE_KEYS)}")
    return path


def _resolve(scope: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = scope
    for depth, step in enumerate(path):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise MissingPath(f"there is no '{'.'.join(path[: depth + 1])}'; {_choices(path[:depth], value)}") from None
    return value


def _choices(path: tuple[str, ...], value: Any) -> str:
    where = ".".join(path)
    if isinstance(value, Mapping):
        return f"'{where}' has {', '.join(map(str, value)) or 'no keys'}"
    if isinstance(value, list):
        return f"'{where}' is a list of {len(value)}"
    return f"'{where}' is of type {type(value).__name__}"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
