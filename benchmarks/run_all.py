"""Run every script of a folder, each in a process of its own; the summary repeats their last lines.

    python benchmarks/run_all.py [--folder evidence] [--seed N] [--timeout SECONDS]

Exit status 1 where one misses a threshold or ends without a last line.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

LAST_LINE = re.compile(r"\S+: (PASS|MISS) .+")


def run(script: Path, seed: int, timeout: float) -> str:
    """The script's last line, or what went wrong in its place."""
    name = script.stem
    print(f"── {name}", flush=True)
    command = [sys.executable, str(script), "--seed", str(seed)]
    try:
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"{name}: MISS no result within {timeout:.0f} s"
    print(ended.stdout, end="", flush=True)
    lines = ended.stdout.strip().splitlines()
    if not lines or not LAST_LINE.fullmatch(lines[-1]):
        return f"{name}: MISS ended with status {ended.returncode} and no result"
    return lines[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for each script")
    options = parser.parse_args()
    scripts = [
        s for s in sorted(options.folder.glob("*.py")) if s.name != Path(__file__).name and not s.name.startswith("_")
    ]
    lines = [run(script, options.seed, options.timeout) for script in scripts]
    print("── summary", *lines, sep="\n")
    sys.exit(any(": PASS " not in line for line in lines))


if __name__ == "__main__":
    main()
