"""Jobs beside each other."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from headrace_lab.browser import PHONE, Browser
from headrace_lab.services.jobs import Seeded

from .conftest import Site

JOBS = [Seeded(0, steps=60, total=80), Seeded(1, steps=40, total=40, status="succeeded"), Seeded(2, steps=9, total=80)]


@pytest.fixture
def compared(site: Site, browser: Browser) -> Browser:
    """The browser at the page of three jobs."""

    async def seed(redis: Redis) -> None:
        for job in JOBS:
            await job.store(redis)

    site.redis(seed)
    browser.open(f"{site.url}/compare?jobs={','.join(job.id for job in JOBS)}")
    browser.until_says("3 jobs compared")
    return browser


def test_jobs_are_drawn_beside_each_other_by_step_and_by_time(compared: Browser) -> None:
    titles = compared.js("return [...document.querySelectorAll('section h3')].map((e) => e.innerText)")
    assert titles == [
        "Reward in training", "Reward on validation", "Largest age in a step", "Effective sample size",
        "Tokens trained a second", "Settings that differ",
    ]  # fmt: skip
    compared.screenshot("compare-light")
    picture = "document.querySelector('.chart canvas').toDataURL()"
    by_step = compared.js(f"return {picture}")
    compared.click(".against label:last-child")
    compared.until(f"{picture} !== arguments[0]", by_step)


def test_settings_that_differ_are_told_and_no_others(compared: Browser) -> None:
    cells = "[...row.children].map((cell) => cell.innerText)"
    rows = compared.js(f"return [...document.querySelectorAll('tbody tr')].map((row) => {cells})")
    assert rows == [["n_steps", "80", "40", "80"], ["learning_rate", "0.0003", "0.0001", "0.0003"]]


def test_jobs_that_go_on_are_followed(compared: Browser, site: Site) -> None:
    compared.until_says("9 of 80 steps")
    site.redis(lambda redis: Seeded(2, steps=21, total=80).record(redis, after=9))
    compared.until_says("21 of 80 steps")


def test_what_cannot_be_compared_is_said(site: Site, browser: Browser) -> None:
    browser.open(f"{site.url}/compare?jobs=ftjob-1")
    browser.until_says("Choose two jobs or more")
    browser.expects("404")
    browser.open(f"{site.url}/compare?jobs=ftjob-1,ftjob-2")
    browser.until_says("no job 'ftjob-1'")


def test_it_is_read_on_a_phone(compared: Browser) -> None:
    compared.look(PHONE, "dark")
    compared.until("window.innerWidth === 390")
    assert compared.overflow() <= 0
    compared.screenshot("compare-phone-dark")
