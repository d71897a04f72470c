"""What MkDocs cannot find by itself under docs/: READMEs, the API reference, and source files that pages link to.

    on_config   nav: the modules in place of `API`, the pages of docs/decisions in place of `Decisions`
    on_files    the pages that have no file in docs/
    on_page     links, written for a reader of the repository, lead to the page of the site

A file that a page links to, and that is no page, becomes one: `sources/<its path>`. So the site needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import api_pages
import repository_links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation, and tell mkdocstrings where the packages lie."""
    python = config.plugins["mkdocstrings"].config.handlers["python"]
    python["paths"] = [str(package.parent) for package in api_pages.packages(ROOT)]
    config.nav = _completed(config.nav)
    return config


def _completed(nav: list[Any]) -> list[Any]:
    """`nav` with `API` and `Decisions` filled in."""
    filled: list[Any] = []
    for entry in nav:
        if entry == "API":
            filled.append({"Python API": api_pages.navigation(ROOT)})
        elif entry == "Decisions":
            decisions = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
            filled.append({"Decisions": ["decisions/README.md", *(f"decisions/{page.name}" for page in decisions)]})
        elif isinstance(entry, dict):
            filled.append({title: _completed(v) if isinstance(v, list) else v for title, v in entry.items()})
        else:
            filled.append(entry)
    return filled


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in docs/."""
    generated = api_pages.pages(ROOT)
    generated |= {page: (ROOT / path).read_text() for path, page in repository_links.PAGES.items()}
    generated |= repository_links.source_pages(ROOT)
    for page, text in generated.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to pages of the site."""
    return repository_links.rewritten(ROOT, page.file.src_uri, markdown)
