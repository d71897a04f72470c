"""Ways to damage stored bytes: truncated, bits flipped, zeroed, JSON of other types, nested too deeply."""

from __future__ import annotations

import random
from collections.abc import Iterator

WRONG_JSON = (
    b"null",
    b"true",
    b"7",
    b'"text"',
    b"[]",
    b"[1, null]",
    b"{}",
    b'{"a": [1]}',
    b"NaN",
    b"1e999",
    b"\xff\xfe",
)
"""JSON of wrong types, and bytes that are no JSON."""
DEPTH = 100_000


def damages(whole: bytes, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yields (description, damaged bytes); deterministic in `seed`."""
    chance = random.Random(seed)
    for at in sorted({0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1}):
        yield f"cut at {at}", whole[:at]
    for _ in range(40):
        at, bit = chance.randrange(len(whole)), chance.randrange(8)
        yield f"bit {bit} of byte {at}", whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    yield "zeros", bytes(len(whole))
    yield "zeros at its end", whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    yield "twice", whole + whole
    for other in WRONG_JSON:
        yield f"instead {other!r}", other
    yield "deep lists", b"[" * DEPTH
    yield "deep objects", b'{"a":' * DEPTH
    yield "deep msgpack", b"\x91" * DEPTH
