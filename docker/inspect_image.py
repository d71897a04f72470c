"""What an image must be able to import, and what it must not hold; the last step of its build."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--imports", nargs="+", default=[], metavar="MODULE")
    parser.add_argument("--without", nargs="+", default=[], metavar="PACKAGE")
    options = parser.parse_args()
    for module in options.imports:
        importlib.import_module(module)
    held = [package for package in options.without if importlib.util.find_spec(package) is not None]
    if held:
        print(f"the image holds {', '.join(held)} and must not", file=sys.stderr)
        return 1
    print(f"imports {', '.join(options.imports)}; without {', '.join(options.without) or 'exceptions'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
