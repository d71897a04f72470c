"""Independent seeds derived from a job's seed: one for each worker, request or purpose."""

from __future__ import annotations

from hashlib import blake2b


def derived_seed(seed: int, *of: str | int, bits: int = 32) -> int:
    """A seed in [0, 2**bits) for the purpose that `of` names, the same in every process; `bits` is a multiple of 8.

    It is a hash, because sums of neighbouring seeds and numbers collide, and two requests with the same seed sample the
    same completions. vLLM accepts at most 32 bits for an engine's seed, because it seeds NumPy with it.
    """
    digest = blake2b(repr((seed, *of)).encode(), digest_size=bits // 8).digest()
    return int.from_bytes(digest, "little")
