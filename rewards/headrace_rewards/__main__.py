"""`python -m headrace_rewards check | tasks`: see `check`, and `tasks.make_file`."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from headrace_rewards.check import check
from headrace_rewards.tasks import make_file


def main() -> int:
    """The exit status: 0 for an answer on stdout, 2 for a wrong command line."""
    if sys.argv[1:] == ["tasks"]:
        make_file.main()
    elif sys.argv[1:] == ["check"]:
        report = asyncio.run(check(sys.stdin.buffer.read()))
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    else:
        print("usage: python -m headrace_rewards check|tasks  < request.json", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
