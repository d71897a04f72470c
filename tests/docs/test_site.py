"""The pages that docs/site adds to the documentation, before MkDocs renders them; tests/browser opens the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import api_pages
import pytest
import repository_links

from headrace_lab.paths import ROOT

LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")


def pages() -> dict[str, str]:
    """Page → the text that MkDocs renders, of all but the API reference."""
    docs = ROOT / "docs"
    texts = {file.relative_to(docs).as_posix(): file.read_text() for file in docs.rglob("*.md")}
    texts |= {page: (ROOT / path).read_text() for path, page in repository_links.PAGES.items()}
    return {page: repository_links.rewritten(ROOT, page, text) for page, text in texts.items()}


def test_every_link_leads_to_a_page_or_a_picture_of_the_site() -> None:
    texts, sources, seen = pages(), repository_links.source_pages(ROOT), 0
    for page, text in texts.items():
        prose = repository_links.without_code(text)
        for target in LINK.findall(prose):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            assert path in texts or path in sources or (ROOT / "docs" / path).is_file(), f"{page}: {target}"
            seen += 1
    assert seen > 200
    assert not [page for page in sources if "/." in page], "MkDocs leaves them out"


def test_a_link_out_of_docs_leads_to_the_page_of_its_source() -> None:
    text = "see [it](../tests/conftest.py#L3), [api](api.md#x), `[no](../README.md)`, [start](../README.md) [w](https://a.b)"
    assert repository_links.rewritten(ROOT, "security.md", text) == (
        "see [it](sources/tests/conftest.py.md#L3), [api](api.md#x), `[no](../README.md)`, [start](index.md) [w](https://a.b)"
    )
    assert repository_links.rewritten(ROOT, "how-to/a.md", "[x](../../docker/README.md)") == "[x](../containers.md)"


def test_a_link_to_nothing_stays_for_mkdocs_to_refuse() -> None:
    assert repository_links.rewritten(ROOT, "index.md", "[x](docs/nothing.md)") == "[x](docs/nothing.md)"


def test_every_public_module_of_the_wheel_has_a_page() -> None:
    found = api_pages.pages(ROOT)
    for package in api_pages.packages(ROOT):
        for module in package.rglob("*.py"):
            relative = module.relative_to(package.parent)
            name = "index" if module.name == "__init__.py" else module.stem
            page = f"api/{relative.parent.as_posix()}/{name}.md"
            assert (page in found) == (not module.name.startswith("_") or name == "index"), page
    assert len(found) > 200


def test_modules_are_found_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.hatch.build.targets.wheel]\npackages = ["a/pack"]\n')
    room = tmp_path / "a" / "pack" / "room"
    room.mkdir(parents=True)
    for file in (room.parent / "__init__.py", room / "__init__.py", room / "clip.py", room / "_hidden.py"):
        file.write_text('"""Clips ratios,\nor not.\n\nMore."""\n')
    found = api_pages.pages(tmp_path)
    assert set(found) == {f"api/{p}.md" for p in ("index", "pack/index", "pack/room/index", "pack/room/clip")}
    assert "| [`clip`](clip.md) | Clips ratios, or not. |" in found["api/pack/room/index.md"]
    [_, package] = api_pages.navigation(tmp_path)
    room_entries = {"room": ["api/pack/room/index.md", {"clip": "api/pack/room/clip.md"}]}
    assert package == {"pack": ["api/pack/index.md", room_entries]}


@pytest.mark.parametrize("path", sorted(repository_links.PAGES))
def test_pages_outside_docs_exist(path: str) -> None:
    assert (ROOT / path).is_file()
