"""The API reference: a page for every public module of the wheel and for every folder, found by looking at the disk."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any


def packages(root: Path) -> list[Path]:
    """The folders of the packages that the wheel holds, in the order of pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    return [root / path for path in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def pages(root: Path) -> dict[str, str]:
    """Page → text."""
    found = {"api/index.md": _overview(root)}
    for package in packages(root):
        for module in _modules(package):
            found[_page(module, package)] = _module_page(module, package)
    return found


def navigation(root: Path) -> list[Any]:
    """The entries of the navigation: a section for every folder, its own page first."""
    return ["api/index.md", *({package.name: _section(package, package)} for package in packages(root))]


def _section(folder: Path, package: Path) -> list[Any]:
    entries: list[Any] = [_page(folder / "__init__.py", package)]
    for child in _children(folder):
        if child.is_dir():
            entries.append({child.name: _section(child, package)})
        else:
            entries.append({child.stem: _page(child, package)})
    return entries


def _children(folder: Path) -> list[Path]:
    """Public modules and folders of modules, folders last."""
    files = sorted(f for f in folder.glob("*.py") if not f.name.startswith("_"))
    return [*files, *sorted(d for d in folder.iterdir() if (d / "__init__.py").is_file())]


def _modules(folder: Path) -> list[Path]:
    children = _children(folder)
    files = [folder / "__init__.py", *(c for c in children if c.is_file())]
    return files + [module for c in children if c.is_dir() for module in _modules(c)]


def _page(module: Path, package: Path) -> str:
    relative = module.relative_to(package.parent)
    if module.name == "__init__.py":
        return f"api/{relative.parent.as_posix()}/index.md"
    return f"api/{relative.with_suffix('.md').as_posix()}"


def _dotted(module: Path, package: Path) -> str:
    parts = module.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _module_page(module: Path, package: Path) -> str:
    name = _dotted(module, package)
    text = f"# `{name}`\n\n::: {name}\n"
    if module.name != "__init__.py":
        return text
    rows = "".join(_row(child) for child in _children(module.parent))
    return text + (
        f"    options:\n      members: false\n\n| module | contents |\n| --- | --- |\n{rows}" if rows else ""
    )


def _row(child: Path) -> str:
    file = child / "__init__.py" if child.is_dir() else child
    link = f"{child.name}/index.md" if child.is_dir() else f"{child.stem}.md"
    return f"| [`{child.stem}`]({link}) | {_first_sentence(file)} |\n"


def _first_sentence(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("|", "\\|")


def _overview(root: Path) -> str:
    rows = "".join(
        f"| [`{package.name}`]({package.name}/index.md) | {_first_sentence(package / '__init__.py')} |\n"
        for package in packages(root)
    )
    return (
        "# Python API\n\nThe packages of the wheel, module by module, from their docstrings. "
        "What they are to each other is on [architecture](../architecture.md).\n\n"
        f"| package | contents |\n| --- | --- |\n{rows}"
    )
