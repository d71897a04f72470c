"""Templates such as `The answer is {{ item.answer }}`, filled by looking up paths, without executing anything.

A template can read `item` (the row) and `sample` (the completion); it cannot call or compute anything. A path is a root
followed by keys and list indexes (`.0` or `[0]`). A key is written `.name`, with letters of any script, digits, `_`,
`-` and inner spaces, or quoted, `["any text"]`. Text is inserted unchanged, other values as JSON.

A path that is missing in the row is an error of the data or the grader: `Failure("bad_input")`. A path that is missing
in the completion (which is not JSON, or lacks a key) is an error of the model, and scores 0, so that the model learns
from it. See `outcome_of`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace_core.protocols.grader_check import Failure, Outcome, Score

from ..protocol import Sample

SAMPLE_KEYS = ("output_text", "output_json", "output_tools", "choices")

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STEP = re.compile(r"""\.(\w(?:[\w -]*\w)?)|\[([0-9]+)\]|\["([^"]+)"\]|\['([^']+)'\]""")
_PATH = re.compile(rf"[A-Za-z_]\w*(?:{_STEP.pattern})*")


class TemplateSyntaxError(ValueError):
    """The template is invalid, whatever the row; the message says where."""


class MissingPath(LookupError):
    """The row has no value at the path."""


class MissingFromSample(MissingPath):
    """The completion has no value at the path."""


def outcome_of(missing: MissingPath, lowest: float = 0.0) -> Outcome:
    """The outcome of a sample whose template cannot be filled. `lowest`: the grader's lowest reward."""
    if isinstance(missing, MissingFromSample):
        return Score(min(lowest, 0.0), sample_fault=str(missing))
    return Failure("bad_input", str(missing))


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
        """The text for one sample; raises `MissingPath`, or its subclass `MissingFromSample`."""
        scope = {"item": sample.item, "sample": sample.as_openai()} if self.paths else {}
        of_row = {
            path: _resolve(scope, path) for path in self.paths if path[0] == "item"
        }  # before the completion's, so that an error of the row comes first
        pieces = [self.texts[0]]
        for path, text in zip(self.paths, self.texts[1:], strict=True):
            pieces += (_as_text(of_row[path] if path in of_row else _resolve(scope, path)), text)
        return "".join(pieces)


def rendered(sample: Sample, *templates: Template) -> list[str]:
    """The filled text of each template. Raises `MissingPath` like `Template.render`: an error of the row takes
    precedence, so that no completion is blamed for it."""
    texts, missing_from_sample = [], None
    for template in templates:
        try:
            texts.append(template.render(sample))
        except MissingFromSample as missing:
            missing_from_sample = missing_from_sample or missing
    if missing_from_sample is not None:
        raise missing_from_sample
    return texts


def _parse_path(expression: str) -> tuple[str, ...]:
    if not _PATH.fullmatch(expression):
        raise TemplateSyntaxError(
            f"'{{{{ {expression} }}}}' is not a path such as 'item.answer', 'item.choices[0]' or 'sample.output_text'"
        )
    root = re.split(r"[.\[]", expression, maxsplit=1)[0]
    path = (root, *("".join(forms) for forms in _STEP.findall(expression[len(root) :])))
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
            lacking = MissingFromSample if path[0] == "sample" else MissingPath
            raise lacking(f"there is no '{'.'.join(path[: depth + 1])}'; {_choices(path[:depth], value)}") from None
    if value is None and path == ("sample", "output_json"):
        raise MissingFromSample("there is no 'sample.output_json': the completion is not JSON")
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
