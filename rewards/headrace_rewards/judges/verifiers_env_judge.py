"""Judges completions by a verifiers environment's rubric: a whole group if one of its functions takes groups, else one
completion at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..tasks import verifiers_dataset

Messages = list[dict[str, Any]]


def of_environment(name: str, arguments: Mapping[str, Any], folder: str) -> Callable[..., Any]:
    """The judge of the environment whose module is in `folder`. Raises `InvalidRequest`."""
    sys.path.append(folder)
    rubric = verifiers_dataset.Rubric(verifiers_dataset.load(name, arguments))

    async def judge_group(prompts: list[Messages], completions: list[Messages], items: list[Any]) -> list[Any]:
        return await rubric.score(prompts, [completion[-1]["content"] for completion in completions], items)

    async def judge_one(prompt: Messages, completion: Messages, item: Any) -> Any:
        (value,) = await rubric.score([prompt], [completion[-1]["content"]], [item])
        return value

    return judge_group if rubric.of_group else judge_one
