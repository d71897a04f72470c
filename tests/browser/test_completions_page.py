"""The page on which completions are read, in Chromium: what it shows, what a reader can do, and what no text can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from selenium.webdriver.common.keys import Keys

from headrace_core.jobs.job_store import JobStore
from headrace_core.jobs.rollout_records import Rollout, RolloutStore
from headrace_lab.browser import PHONE, Browser
from headrace_lab.services.jobs import stored_job
from tests.gateway.kept_groups import END, MODEL_FOLDER, completion, group

from .conftest import Site

JOB = "ftjob-read"
SETTINGS = {
    "max_staleness": 4,
    "late": "mask",
    "batch_size": 4,
    "group_size": 4,
    "algorithm": "grpo",
    "importance_cap": 5.0,
    "keep_rollouts": 4,
}
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script></pre>\'"&lt;b&gt;'
THOUGHT = "First 37 + 50 = 87.\nThen 87 + 6 = 93, so the answer is 93."


def rewarded(step: int, number: int) -> Rollout:
    """Four completions, the best one neither first nor last."""
    return group(
        step,
        number,
        [
            completion(f"I think 37 + 56 is 83.{END}", step, 0.0, oldest=2),
            completion(f"{THOUGHT}{END}", step, 1.0, oldest=6),
            completion("héllo 日本 🎉 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48", step, 0.25, oldest=4),
            completion(f"{HOSTILE}{END}", step, None),
        ],
    )


def keep(site: Site, rollouts: Sequence[Rollout], status: str = "running") -> str:
    """A job that has kept these, and its page's address."""

    async def stored(redis: Redis) -> None:
        job = stored_job(JOB, model_path=str(MODEL_FOLDER), hyperparameters=SETTINGS, total_steps=60, status=status)
        await JobStore(redis).create(job)

    site.redis(stored)
    site.redis(adding(rollouts))
    return f"{site.url}/jobs/{JOB}/completions"


def adding(rollouts: Sequence[Rollout]) -> Callable[[Redis], Awaitable[int]]:
    return lambda redis: RolloutStore(redis, JOB).add(rollouts, 10_000_000)


def texts(browser: Browser, selector: str) -> list[str]:
    return list(browser.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector))


def shown_groups(browser: Browser) -> list[str]:
    titles = "[...document.querySelectorAll('.group h2')].filter((e) => e.checkVisibility())"
    return list(browser.js(f"return {titles}.map((e) => e.textContent)"))


def background(browser: Browser, text: str) -> Any:
    """Of the first token that is this text."""
    find = "[...document.querySelectorAll('.tokens > span')].find((e) => e.textContent === arguments[0])"
    return browser.js(f"return getComputedStyle({find}).backgroundColor", text)


def test_completions_are_read_from_the_best_to_the_worst(site: Site, browser: Browser) -> None:
    url = keep(site, [rewarded(step, 4 * step) for step in (11, 12)])
    browser.open(url)
    browser.until_says("Step 12 · group 48")
    assert texts(browser, ".group:first-child .reward") == ["1 reward", "0.25 reward", "0 reward", "no reward"]
    verdict = browser.text(".group .verdict")
    assert all(word in verdict for word in ("advantage", "+0.5", "exact", "brief", "stop"))
    assert texts(browser, ".group:first-child .tokens")[0] == f"{THOUGHT}{END}"
    assert browser.text(".group:first-child .notes") == f"said\n<b>{THOUGHT[:20]}"
    assert "What is 37 + 56?" in browser.text(".group .prompt")
    assert "mean reward 0.42" in browser.text(".group .meta")
    assert "Healthy:" in browser.text("#good")
    struck = browser.js("return document.querySelectorAll('.group:first-child .tokens > .masked').length")
    assert struck > 0
    browser.screenshot("completions-light")
    assert browser.overflow() <= 0


def test_tokens_are_coloured_by_what_is_chosen_and_say_what_is_known_of_them(site: Site, browser: Browser) -> None:
    browser.open(keep(site, [rewarded(12, 48)]))
    browser.until_says("Step 12 · group 48")
    assert background(browser, "F") != background(browser, END), "ages 6 and 0"
    for way, legend in (("weight", "5 (cap)"), ("logprob", "100 %"), ("plain", "not trained on")):
        browser.click(f"input[value={way}]")
        browser.until("document.querySelector('.scale').textContent.includes(arguments[0])", legend)
    assert background(browser, "F") == background(browser, END)
    assert "color=plain" in browser.driver.current_url
    browser.js("document.querySelector('.tokens > span').click()")
    card = browser.text(".token-card")
    for known in ("version", "5", "age", "6", "importance weight", "none computed", "older than the bound"):
        assert known in card
    assert "log-probability" in card
    tokens = browser.driver.find_element("css selector", ".tokens")
    tokens.send_keys(Keys.END)
    browser.until("document.querySelector('.token-card').innerText.includes('end')")
    assert "age" in browser.text(".token-card")
    tokens.send_keys(Keys.ESCAPE)
    assert browser.js("return document.querySelector('.token-card').hidden")


def test_a_completion_can_be_no_markup_and_run_no_script(site: Site, browser: Browser) -> None:
    hostile = group(1, 0, [completion(HOSTILE, 1)], prompt=HOSTILE)
    browser.open(keep(site, [hostile]))
    browser.until_says("window.hacked=1")
    assert texts(browser, ".group .tokens") == [HOSTILE]
    assert texts(browser, ".group .prompt pre") == [HOSTILE]
    browser.js("document.querySelector('.tokens > span').click()")
    assert browser.js("return document.querySelectorAll('main img, main script, .token-card img').length") == 0
    assert browser.js("return window.hacked ?? null") is None


def test_steps_are_chosen_text_is_searched_and_pages_are_turned(site: Site, browser: Browser) -> None:
    browser.open(keep(site, [rewarded(step, step) for step in range(1, 8)], status="succeeded"))
    browser.until_says("Step 7 · group 7")
    assert len(shown_groups(browser)) == 5
    browser.click("#older")
    browser.until_says("page 2")
    assert shown_groups(browser) == ["Step 2 · group 2", "Step 1 · group 1"]
    assert browser.js("return document.querySelector('#older').disabled")
    browser.click("#newer")
    browser.until_says("Step 7 · group 7")
    browser.type("#step", "3")
    browser.until("document.querySelectorAll('.group').length === 1")
    assert shown_groups(browser) == ["Step 3 · group 3"]
    browser.type("#search", "ANSWER IS 93")
    browser.until("document.querySelectorAll('.tokens > .hit').length > 0")
    assert "".join(texts(browser, ".tokens > .hit")).strip().startswith("answer is 93")
    assert browser.js("return [...document.querySelectorAll('.completion')].filter((e) => !e.hidden).length") == 1
    browser.type("#search", " not there")
    browser.until_says("None of the completions on this page holds that text.")
    browser.driver.refresh()
    browser.until_says("Step 3 · group 3")
    assert shown_groups(browser) == ["Step 3 · group 3"], "the address holds what is looked at"
    browser.type("#step", "9")
    browser.until_says("No completion of that is recorded.")


def test_a_new_step_shows_itself_to_who_reads_the_newest(site: Site, browser: Browser) -> None:
    browser.open(keep(site, [rewarded(step, step) for step in range(1, 6)]))
    browser.until_says("Step 5 · group 5")
    site.redis(adding([rewarded(6, 6)]))
    browser.until_says("Step 6 · group 6")
    browser.js("scrollTo(0, 800)")
    site.redis(adding([rewarded(7, 7)]))
    browser.until("!document.querySelector('.fresh').hidden")
    assert "Step 7 · group 7" not in browser.text("main"), "what is read does not move"
    browser.click(".fresh")
    browser.until_says("Step 7 · group 7")


def test_large_groups_and_long_completions_open_in_part(site: Site, browser: Browser) -> None:
    many = group(1, 0, [completion(f"try {n}", 1, reward=float(n)) for n in range(20)])
    long = group(2, 1, [completion("9" * 3000, 2)])
    browser.open(keep(site, [many, long]))
    browser.until_says("Step 1 · group 0")
    assert browser.js("return document.querySelector('.tokens').childElementCount") == 500
    browser.click(".completion .more")
    browser.until("document.querySelector('.tokens').childElementCount === 3000")
    visible = "[...document.querySelectorAll('.group:nth-child(2) .completion')].filter((e) => !e.hidden)"
    assert browser.js(f"return {visible}.map((e) => e.querySelector('.reward').textContent)") == [
        f"{n} reward" for n in (19, 18, 17, 16, 3, 2, 1, 0)
    ]
    browser.click(".group:nth-child(2) > .more")
    assert browser.js(f"return {visible}.length") == 20


def test_what_is_not_there_is_said(site: Site, browser: Browser) -> None:
    browser.open(keep(site, []))
    browser.until_says("No step yet. Completions appear with the first one.")
    browser.expects("404")
    browser.open(f"{site.url}/jobs/ftjob-none/completions")
    browser.until_says("no job 'ftjob-none'")


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_it_fits_a_phone_in_either_colours(site: Site, browser: Browser, colors: str) -> None:
    browser.look(PHONE, colors)
    browser.open(keep(site, [rewarded(12, 48)]))
    browser.until_says("Step 12 · group 48")
    browser.click("input[value=weight]")
    browser.screenshot(f"completions-phone-{colors}")
    assert browser.overflow() <= 0


def test_dark_colours(site: Site, browser: Browser) -> None:
    browser.look(colors="dark")
    browser.open(keep(site, [rewarded(12, 48)]))
    browser.until_says("Step 12 · group 48")
    browser.js("document.querySelectorAll('.tokens > span')[3].click()")
    browser.screenshot("completions-dark")
    style = "getComputedStyle(document.querySelector(arguments[0]))"
    assert browser.js(f"return {style}.backgroundColor", "html") == "rgb(13, 19, 23)"
    assert browser.js(f"return {style}.color", ".completion") == "rgb(228, 236, 241)"
