"""`python -m headrace_rewards check | tasks | sandbox | control-groups`: see `main` of `grader_check`,
`tasks.make_file`, `sandbox.machine`, `sandbox.control_groups`.

Each command imports only its own modules, because some take seconds to import.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command. Returns the exit status: 0 for an answer on stdout, 2 for a wrong command line."""
    if sys.argv[1:] == ["check"]:
        from . import grader_check

        grader_check.main()
    elif sys.argv[1:] == ["tasks"]:
        from .tasks import dataset_file

        dataset_file.main()
    elif sys.argv[1:] == ["sandbox"]:
        from .sandbox import level_probe

        level_probe.main()
    elif sys.argv[1:] == ["control-groups"]:
        from .sandbox.kernel import control_groups

        control_groups.main()
    else:
        print("usage: python -m headrace_rewards check|tasks|sandbox|control-groups  < request.json", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
