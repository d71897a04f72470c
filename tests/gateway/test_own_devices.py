"""This machine's devices: what nvidia-smi lists of GPUs, and which of them CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace_core.planning.devices import Devices
from headrace_gateway.operations.cache_memory import main_memory
from headrace_gateway.operations.own_devices import listed_gpus, own_devices, visible_gpus

MIB = 2**20


def program(folder: Path, script: str) -> str:
    """An nvidia-smi that runs `script`."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def test_gpus_are_those_that_are_listed_and_count_as_the_smallest(tmp_path: Path) -> None:
    asked = 'test "$1" = --query-gpu=memory.total || exit 2\n'
    smi = program(tmp_path, f"{asked}printf '81559\\n40960\\n81559\\n'")
    assert listed_gpus(smi, None) == Devices(3, 40_960 * MIB, gpu=True)
    assert listed_gpus(smi, 2) == Devices(2, 40_960 * MIB, gpu=True)
    assert listed_gpus(smi, 8) == Devices(3, 40_960 * MIB, gpu=True)


@pytest.mark.parametrize("script", ["exit 9", "true", "echo '[N/A]'"])
def test_gpus_that_cannot_be_asked_are_not_known(tmp_path: Path, script: str) -> None:
    assert listed_gpus(program(tmp_path, script), None) is None
    assert listed_gpus(str(tmp_path / "none"), None) is None


@pytest.mark.parametrize(
    ("variable", "count"),
    [(None, None), ("", 0), ("-1", 0), ("0", 1), ("0, 3", 2), ("GPU-1f2e,GPU-77aa", 2), ("1,-1,2", 1)],
)
def test_visible_gpus_are_counted(variable: str | None, count: int | None) -> None:
    assert visible_gpus(variable) == count


def test_a_machine_whose_gpus_are_hidden_is_its_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert own_devices() == Devices(1, main_memory(), gpu=False)
