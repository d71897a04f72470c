"""The page of all jobs."""

from __future__ import annotations

from .chromium import Browser
from .conftest import Site


def test_without_jobs_it_says_how_to_begin(site: Site, browser: Browser) -> None:
    browser.open(site.url)
    browser.until_says("headrace train examples/adder/job.toml")
    browser.screenshot("list-empty")
