"""Seeds made of a seed: one for each worker, request or purpose."""

from __future__ import annotations

from hashlib import blake2b


def derived_seed(seed: int, *of: str | int, bits: int = 32) -> int:
    """A seed in [0, 2**bits) for what `of` names, the same in every process; `bits` is a multiple of 8.

    A hash, not a sum: sums of neighbouring seeds and names meet, and who shares a seed samples the same completions.
    32 bits are the most that vLLM, which seeds NumPy, takes for an engine.
    """
    digest = blake2b(repr((seed, *of)).encode(), digest_size=bits // 8).digest()
    return int.from_bytes(digest, "little")
