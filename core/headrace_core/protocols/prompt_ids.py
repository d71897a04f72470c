"""What a base model's prompt is made of, for whoever counts it and for whoever samples after it."""

from __future__ import annotations

from collections.abc import Sequence


def before_going_on(ids: Sequence[int], special: Sequence[int], begins: int | None) -> list[int]:
    """`ids` without what the tokenizer put behind the text: after a token that ends a text nothing goes on.

    `special` is 1 for each id that the tokenizer added to the text, before it or behind it; `begins` is the token that
    begins a text, by which those of an empty one are told apart.
    """
    size = len(ids)
    while size and special[size - 1]:
        size -= 1
    if not size and ids and ids[0] == begins:
        return [ids[0]]
    return list(ids[:size])
