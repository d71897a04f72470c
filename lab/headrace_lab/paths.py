"""Where the repository's folders are, and how a file of them is imported that belongs to no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
ADDER, LONGTAIL = EXAMPLES / "adder", EXAMPLES / "longtail"


def load_module(path: Path) -> ModuleType:
    """The module in this file, under its file name. Other files can import it by that name afterwards, as scripts that
    lie beside it do: load what a script imports before the script."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
