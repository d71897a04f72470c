"""Runs every script of a package, each in its own process; the summary repeats their last lines.

    python -m benchmarks.run_all [--package evidence] [--seed N] [--timeout SECONDS]

A script is a module in the package's folder, or the module `run` of a subfolder. The exit status is 1 if a script
misses a threshold or ends without a result line.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

from headrace_lab.paths import ROOT

LAST_LINE = re.compile(r"\S+: (PASS|MISS) .+")


def scripts(package: str) -> dict[str, str]:
    """Module name by script name, in alphabetical order."""
    modules = {path.stem: f"{package}.{path.stem}" for path in (ROOT / package).glob("[!_]*.py")}
    folders = {path.parent.name: f"{package}.{path.parent.name}.run" for path in (ROOT / package).glob("*/run.py")}
    return {name: module for name, module in sorted((modules | folders).items()) if module != "benchmarks.run_all"}


def run(name: str, module: str, seed: int, timeout: float) -> str:
    """Run the script; returns its last line, or a line that says what went wrong."""
    print(f"── {name}", flush=True)
    command = [sys.executable, "-m", module, "--seed", str(seed)]
    try:
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return f"{name}: MISS no result within {timeout:.0f} s"
    print(ended.stdout, end="", flush=True)
    lines = ended.stdout.strip().splitlines()
    if not lines or not LAST_LINE.fullmatch(lines[-1]):
        return f"{name}: MISS ended with status {ended.returncode} and no result"
    return lines[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", choices=("benchmarks", "evidence"), default="benchmarks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for each script")
    options = parser.parse_args()
    lines = [run(name, module, options.seed, options.timeout) for name, module in scripts(options.package).items()]
    print("── summary", *lines, sep="\n")
    sys.exit(any(": PASS " not in line for line in lines))


if __name__ == "__main__":
    main()
