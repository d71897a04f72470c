"""Where a version is staged for an accelerator; the updates themselves are in test_engines and test_tensor_parallel."""

from __future__ import annotations

import pytest
import torch

from headrace_rollout.engines.vllm.weight_updates import FREE_BYTES, staging_device

GIB = 2**30
GPU, HOST = torch.device("cuda", 1), torch.device("cpu")


@pytest.mark.parametrize(
    ("needed", "free", "where"),
    [
        (15 * GIB, 24 * GIB, GPU),
        (15 * GIB, 8 * GIB, HOST),  # 7B beside an engine that took nine tenths of 80 GB
        (7 * GIB, 7 * GIB + FREE_BYTES, GPU),
        (7 * GIB, 7 * GIB + FREE_BYTES - 1, HOST),  # the running model allocates a little, too
        (62 * GIB, None, GPU),
    ],
)
def test_a_version_is_staged_on_the_device_where_it_fits_beside_the_model(
    needed: int, free: int | None, where: torch.device
) -> None:
    assert staging_device(needed, free, GPU) == where
