"""`python -m headrace_rewards check`: see `check`."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from headrace_rewards.check import check


def main() -> int:
    """The exit status: 0 for an answer on stdout, 2 for a wrong command line."""
    if sys.argv[1:] != ["check"]:
        print("usage: python -m headrace_rewards check  < request.json", file=sys.stderr)
        return 2
    report = asyncio.run(check(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
