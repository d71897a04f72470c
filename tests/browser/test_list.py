"""The page of all jobs."""

from __future__ import annotations

import time

from redis.asyncio import Redis

from headrace_core.redis_access.keys import JobKeys
from headrace_lab.browser import PHONE, Browser
from headrace_lab.services.jobs import Seeded

from .conftest import Site

RUNNING = Seeded(0, steps=30, total=80, suffix="running")
DONE = Seeded(1, steps=40, total=40, status="succeeded", suffix="done")
FAILED = Seeded(2, steps=7, total=80, status="failed", suffix="broken", error="the learner ran out of memory")
NAMES = ".job .name a"
ROW = f'[...document.querySelectorAll(".job")].find((row) => row.innerText.includes("{RUNNING.id}"))'


async def seed(redis: Redis) -> None:
    for job in (FAILED, DONE, RUNNING, Seeded(3, steps=0, total=80, status="queued", suffix="waiting")):
        await job.store(redis)


def shown(browser: Browser) -> list[str]:
    names: list[str] = browser.js(f"return [...document.querySelectorAll('{NAMES}')].map((a) => a.innerText)")
    return names


def test_without_jobs_it_says_how_to_begin_and_shows_the_first_job_by_itself(site: Site, browser: Browser) -> None:
    browser.open(site.url)
    browser.until_says("headrace train examples/adder/job.toml")
    browser.screenshot("list-empty")
    site.redis(RUNNING.store)
    browser.until_says(RUNNING.id)


def test_each_job_shows_how_far_how_well_and_how_old(site: Site, browser: Browser) -> None:
    site.redis(seed)
    browser.open(site.url)
    browser.until_says("4 jobs")
    row = browser.js(f"return {ROW}.innerText")
    for says in ("running", "step 30 of 80", "reward", "validation", "oldest token", "4 of 4"):
        assert says in row
    assert browser.js(f"return {ROW}.querySelectorAll('.spark polyline').length") == 2
    assert browser.js(f"return {ROW}.querySelector('.spark.age .bound') !== null")
    assert browser.js(f"return {ROW}.querySelector('[role=progressbar]').getAttribute('aria-valuenow')") == "38"
    browser.until_says("the learner ran out of memory")
    browser.screenshot("list-light")


def test_the_oldest_token_is_shown_beside_the_bound_of_its_own_step(site: Site, browser: Browser) -> None:
    """The bound was lowered from 8 to 4 while the job ran: "6 of 4" is nothing that ever happened."""
    site.redis(seed)
    books = {"largest_age": 6, "largest_age_bound": 8}
    site.redis(lambda redis: redis.hset(JobKeys(RUNNING.id).ledger, mapping=books))  # type: ignore[arg-type]
    browser.open(site.url)
    browser.until(f"{ROW}?.innerText.includes('6 of 8')")
    assert browser.js(f"return {ROW}.querySelector('.spark.age .bound') === null"), "no one line is every step's bound"
    browser.open(f"{site.url}/jobs/{RUNNING.id}")
    browser.until_says("the bound of its step; 4 now")
    assert "6 of 8" in browser.text()


def test_progress_moves(site: Site, browser: Browser) -> None:
    site.redis(seed)
    browser.open(site.url)
    browser.until(f"{ROW}?.innerText.includes('step 30 of 80')")
    line = browser.js(f"return {ROW}.querySelector('.spark.reward polyline').getAttribute('points')")
    site.redis(lambda redis: Seeded(0, steps=44, total=80, suffix="running").record(redis, after=30))
    browser.until(f"{ROW}.innerText.includes('step 44 of 80')")
    assert browser.js(f"return {ROW}.querySelector('.spark.reward polyline').getAttribute('points')") != line


def test_jobs_are_filtered_by_status_and_by_text_and_the_address_says_so(site: Site, browser: Browser) -> None:
    site.redis(seed)
    browser.open(site.url)
    browser.until_says("4 jobs")
    browser.type("#status", "failed")
    browser.until_says("1 of 4 jobs")
    assert shown(browser) == ["headrace/tiny-adder · broken-2"]
    browser.open(f"{site.url}/?q=DONE")
    browser.until_says("1 of 4 jobs")
    assert shown(browser) == ["headrace/tiny-adder · done-1"]
    browser.type("#words", " nothing like it")
    browser.until_says("0 of 4 jobs")
    assert browser.js("return location.search") == "?q=done+nothing+like+it"


def test_older_jobs_are_a_page_further(site: Site, browser: Browser) -> None:
    async def many(redis: Redis) -> None:
        for number in range(103):
            await Seeded(number, steps=1, total=9, status="cancelled", beats=0, began=1e9 + number).store(redis)

    site.redis(many)
    browser.open(site.url)
    browser.until_says("100 jobs")
    assert shown(browser)[0] == "headrace/tiny-adder · seeded-102"
    browser.click(".older button")
    browser.until_says("103 jobs")
    assert shown(browser)[-1] == "headrace/tiny-adder · seeded-0"
    assert browser.js("return document.querySelector('.older button').hidden")


def test_two_jobs_are_chosen_and_compared(site: Site, browser: Browser) -> None:
    site.redis(seed)
    browser.open(site.url)
    browser.until_says("4 jobs")
    for job in (RUNNING, DONE):
        browser.click(f'input[aria-label$="{job.id}"]')
    browser.until_says("2 jobs chosen")
    browser.click("#compare")
    browser.until_says("2 jobs compared")
    chosen = browser.js("return new URLSearchParams(location.search).get('jobs').split(',')")
    assert sorted(chosen) == [RUNNING.id, DONE.id]


def test_it_is_read_on_a_phone_and_in_the_dark(site: Site, browser: Browser) -> None:
    site.redis(seed)
    browser.look(PHONE, "dark")
    browser.open(site.url)
    browser.until_says("4 jobs")
    assert browser.overflow() <= 0
    browser.screenshot("list-phone-dark")


def test_colours_are_the_systems_until_somebody_chooses(site: Site, browser: Browser) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    browser.look(colors="dark")
    browser.open(site.url)
    browser.until_says("No job yet")
    dark = browser.js(f"return {background}")
    browser.click("#theme")
    light = browser.js(f"return {background}")
    assert light != dark
    browser.open(site.url)
    assert browser.js(f"return {background}") == light
    browser.click("#theme")
    assert browser.js(f"return {background}") == dark
    browser.look(colors="light")
    browser.until(f"{background} === arguments[0]", light)


def test_a_gateway_that_restarts_is_found_again(site: Site, browser: Browser) -> None:
    browser.open(site.url)
    browser.until_says("live")
    browser.expects("ERR_CONNECTION_REFUSED")
    site.stop()
    browser.until_says("the gateway does not answer; trying again")
    site.start()
    began = time.monotonic()
    browser.until("document.getElementById('connection').innerText === 'live'")
    assert time.monotonic() - began < 10
