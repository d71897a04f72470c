"""Links between files of the repository, as links between pages of the site."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "docker/README.md": "containers.md",
    "examples/adder/README.md": "examples/adder.md",
    "examples/longtail/README.md": "examples/longtail.md",
    "examples/real/README.md": "examples/real.md",
}
"""Markdown outside docs/ → its page."""

_CODE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)$|`[^`\n]+`|^(?: {4}[^\n]*\n?)+", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".yaml": "yaml", ".jsonl": "json"}


def rewritten(root: Path, page: str, markdown: str) -> str:
    """The text of `page` with its links as the site has them; a link to nothing stays, and MkDocs complains of it."""
    source = _repository_path(page)

    def link(match: re.Match[str]) -> str:
        target = _target(root, source, match["target"])
        if target is None:
            return match[0]
        relative = os.path.relpath(_site_path(target), PurePosixPath(page).parent)
        return f"]({relative}{match['anchor'] or ''})"

    return _outside_code(markdown, lambda text: _LINK.sub(link, text))


def source_pages(root: Path) -> dict[str, str]:
    """Page → text, for every file that a page links to and that is no page itself."""
    markdown = [*sorted((root / "docs").rglob("*.md")), *(root / path for path in PAGES)]
    found: dict[str, str] = {}
    for file in markdown:
        source = PurePosixPath(file.relative_to(root).as_posix())
        for match in _LINK.finditer(without_code(file.read_text())):
            target = _target(root, source, match["target"])
            if target is not None and (page := _site_path(target)).startswith("sources/"):
                found[page] = _source_page(root, target)
    return found


def without_code(markdown: str) -> str:
    """The text without blocks and spans of code."""
    return _CODE.sub("", markdown)


def _source_page(root: Path, path: PurePosixPath) -> str:
    text = (root / path).read_text()
    fence = "`" * (max(map(len, re.findall(r"`+", text)), default=0) + 3)
    language = _LANGUAGES.get(path.suffix, "text")
    settings = "---\nsearch: {exclude: true}\nhide: [navigation, toc]\n---\n"
    return f"{settings}\n# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _target(root: Path, source: PurePosixPath, link: str) -> PurePosixPath | None:
    """The file of the repository that a link in `source` means, or None where it means something else."""
    if ":" in link:
        return None
    path = PurePosixPath(os.path.normpath(source.parent / link))
    return path if (root / path).is_file() else None


def _repository_path(page: str) -> PurePosixPath:
    outside = {site: path for path, site in PAGES.items()}
    return PurePosixPath(outside.get(page, f"docs/{page}"))


def _site_path(path: PurePosixPath) -> str:
    if str(path) in PAGES:
        return PAGES[str(path)]
    if path.parts[0] == "docs" and path.suffix != ".py":
        return str(PurePosixPath(*path.parts[1:]))
    return f"sources/{path.with_name(path.name.lstrip('.'))}.md"  # MkDocs leaves out names with a dot


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    parts: list[str] = []
    end = 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])
