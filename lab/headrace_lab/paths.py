"""Paths of the repository's folders, and the import of files that belong to no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
ADDER, LONGTAIL = EXAMPLES / "adder", EXAMPLES / "longtail"


def load_module(path: Path, *imported: Path) -> ModuleType:
    """Load the file `path`, which belongs to no package, as a module.

    `imported`: files beside it that it imports by their names, in the order in which they can be loaded. Their names do
    not stay in `sys.modules`. The module itself stays, as `loaded_<name>`, because annotations are looked up by it.
    """
    before = {file.stem: sys.modules.get(file.stem) for file in imported}
    names = [*(file.stem for file in imported), f"loaded_{path.stem}"]
    try:
        for name, file in zip(names, (*imported, path), strict=True):
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    finally:
        for name, known in before.items():
            sys.modules.pop(name, None)
            if known is not None:
                sys.modules[name] = known
    return module
