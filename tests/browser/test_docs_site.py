"""The documentation as a site: built strictly, every link and anchor in its pages, and opened from its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from headrace_lab.browser import PHONE, Browser
from headrace_lab.paths import ROOT

pytestmark = pytest.mark.timeout(600)


class Html(HTMLParser):
    """What a page links to, loads, and can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag == "link" and given.get("rel") != "canonical":
            self.loads.add(given["href"])
        if "src" in given:
            self.loads.add(given["src"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Html]:
    """404.html is left out: nobody answers with it where there is no server."""
    return {page: Html(page.read_text()) for page in built.rglob("*.html") if page.name != "404.html"}


def test_every_link_and_anchor_is_there(pages: dict[Path, Html]) -> None:
    assert len(pages) > 300
    for page, html in pages.items():
        for link in html.links | html.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file(), f"{page}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids | {"__top"}, f"{page}: {link}"


def test_pages_load_nothing_from_another_host(pages: dict[Path, Html]) -> None:
    loads = {load for html in pages.values() for load in html.loads}
    assert len(loads) > 10
    assert not [load for load in loads if urlsplit(load).scheme in ("http", "https") or load.startswith("//")]


def test_it_opens_from_its_folder_and_is_searched(built: Path, browser: Browser) -> None:
    browser.open(f"file://{built}/index.html")
    browser.until_says("asynchronous reinforcement-learning post-training service")
    browser.screenshot("docs-start")
    browser.click(".md-search__input")
    browser.type(".md-search__input", "max_staleness")
    browser.until("document.querySelectorAll('.md-search-result__item').length > 3")
    browser.screenshot("docs-search")

    browser.open(f"file://{built}/recovery.html")
    browser.look(PHONE, "dark")
    browser.until("getComputedStyle(document.body).backgroundColor !== 'rgb(255, 255, 255)'")
    assert browser.overflow() == 0
    browser.screenshot("docs-phone-dark")
