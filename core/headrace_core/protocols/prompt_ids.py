"""Token ids of a base model's prompt, alike for the gateway, which counts them, and the rollout worker, which samples
after them."""

from __future__ import annotations

from collections.abc import Sequence


def strip_end_tokens(ids: Sequence[int], special: Sequence[int], begin_token: int | None) -> list[int]:
    """`ids` without the special tokens that the tokenizer appended to the text.

    A model cannot continue after an end-of-text token. `special` is 1 for each id that the tokenizer added before or
    after the text. `begin_token` is the begin-of-text token: the ids of an empty text are all special, and a leading
    `begin_token` stays.
    """
    size = len(ids)
    while size and special[size - 1]:
        size -= 1
    if not size and ids and ids[0] == begin_token:
        return [ids[0]]
    return list(ids[:size])
