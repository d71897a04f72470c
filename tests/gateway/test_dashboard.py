"""The dashboard's files: how they hang together. How they look is for tests/browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace_gateway.routes.dashboard import FOLDER

IMPORT = re.compile(r'^(?:import|export) .*?from "(\..*?)";$', re.MULTILINE)
MODULES = sorted(p for p in FOLDER.rglob("*.js") if p.parent.name != "vendor")


def reached(module: Path, found: set[Path]) -> set[Path]:
    """The module, and all that it imports."""
    if module not in found:
        found.add(module)
        for name in IMPORT.findall(module.read_text()):
            reached((module.parent / name).resolve(), found)
    return found


def test_the_page_asks_for_all_modules_at_once() -> None:
    """None is found only when another has come: each level of imports would be a round trip."""
    page = (FOLDER / "index.html").read_text()
    preloaded = {(FOLDER / name).resolve() for name in re.findall(r'modulepreload" href="/dashboard/(.*?)"', page)}
    main = FOLDER / "main.js"
    assert preloaded == reached(main, set()) - {main}


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_modules_are_short_and_say_what_they_are(module: Path) -> None:
    text = module.read_text()
    assert text.startswith("// ")
    assert len(text.splitlines()) < 250


def test_every_module_is_used() -> None:
    pages = [*FOLDER.glob("*.html")]
    entries = {
        name
        for page in pages
        for name in re.findall(r'<script src="/dashboard/(\S+\.js)" type="module"', page.read_text())
    }
    assert set(MODULES) == {module for entry in entries for module in reached(FOLDER / entry, set())}


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.html")), ids=lambda p: p.name)
def test_pages_hold_no_script_and_no_style_of_their_own(page: Path) -> None:
    """The content security policy would refuse them."""
    text = page.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=", text)
