"""The page of one job."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from headrace_core.types.events import Standstill, Wait
from headrace_core.types.job import PausedBy
from headrace_lab.browser import PHONE, Browser
from headrace_lab.services.jobs import BATCH, Seeded

from .conftest import Site

JOB = Seeded(0, steps=130, total=200, workers=3)
CARDS = (
    "Reward", "Reward by component", "Completions", "How far off policy", "Token age over the steps",
    "Age distribution", "What age costs", "Weights of each worker", "Who waits for whom", "Busy over time",
    "Throughput, tokens a second", "Weight updates, milliseconds", "Queue", "Ledger: where every group went",
    "Can the reward be relied on", "Workers", "Settings", "Events and errors",
)  # fmt: skip
LEFT, UP = Keys.ARROW_LEFT, Keys.ARROW_UP
DRAWN = "performance.getEntriesByName('drawn').length"
INKED = """(() => {
  const canvas = [...document.querySelectorAll('section')].find((s) => s.querySelector('h3').innerText === arguments[0])
    .querySelector('canvas');
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  let inked = 0;
  for (let i = 3; i < data.length; i += 4) inked += data[i] > 0;
  return inked;
})()"""


@pytest.fixture
def opened(site: Site, browser: Browser) -> Browser:
    """The browser at the page of a running job, drawn."""
    site.redis(JOB.store)
    browser.open(f"{site.url}/jobs/{JOB.id}")
    browser.until(DRAWN)
    return browser


def inked(browser: Browser, title: str) -> int:
    """Pixels that a card's canvas has drawn on."""
    return int(browser.js(f"return {INKED}", title))


def test_every_chart_says_what_good_looks_like_and_has_drawn_something(opened: Browser) -> None:
    titles = opened.js("return [...document.querySelectorAll('section h3')].map((e) => e.innerText)")
    assert titles == list(CARDS)
    says = opened.js("return [...document.querySelectorAll('section .good-is')].map((e) => e.innerText)")
    assert len(says) == len(CARDS)
    assert all(line.startswith("Healthy: ") for line in says)
    drawn = [title for title in CARDS[:13] if title != "Who waits for whom"]
    assert {title: inked(opened, title) > 200 for title in drawn} == dict.fromkeys(drawn, True)
    opened.screenshot("job-light")


def test_the_figures_are_the_jobs(opened: Browser) -> None:
    text = opened.text()
    for says in ("step 130 of 200", "4 of 4", "running", "groups 42 %"):
        assert says in text
    assert f"trained {130 * BATCH:,}" in text
    assert "✓" in opened.text(".balance")
    assert opened.js("return document.querySelectorAll('.split').length") == 4
    assert opened.js("return document.querySelector('a.button').getAttribute('href')") == f"/jobs/{JOB.id}/completions"


def test_charts_move_when_something_is_measured(opened: Browser, site: Site) -> None:
    before = {title: inked(opened, title) for title in ("Reward", "Token age over the steps", "Weights of each worker")}
    picture = "document.querySelector('.plane canvas').toDataURL()"
    heat = opened.js(f"return {picture}")
    site.redis(lambda redis: Seeded(0, steps=190, total=200, workers=3).record(redis, after=130))
    opened.until_says("step 190 of 200")
    opened.until(f"{picture} !== arguments[0]", heat)
    assert f"trained {190 * BATCH:,}" in opened.text()
    assert inked(opened, "Reward") != before["Reward"]
    assert inked(opened, "Weights of each worker") != before["Weights of each worker"]


def test_cells_of_the_heat_map_are_read_by_keys(opened: Browser) -> None:
    opened.type(".plane canvas", LEFT)
    opened.until("!document.querySelector('.tip').hidden")
    before, age, says = opened.text(".tip").split(" · ")
    assert "% of tokens" in says or says == "no token"
    opened.type(".plane canvas", LEFT)
    opened.type(".plane canvas", UP)
    after = opened.text(".tip").split(" · ")
    assert int(after[0].removeprefix("step ")) == int(before.removeprefix("step ")) - 1
    assert int(after[1].removeprefix("age ")) == int(age.removeprefix("age ")) + 1


def test_a_question_comes_before_a_job_is_paused_or_cancelled(opened: Browser, site: Site) -> None:
    opened.click("#pause")
    opened.until("document.querySelector('dialog[open]')")
    opened.click("dialog button[value=no]")
    assert site.store(lambda jobs: jobs.get(JOB.id)).status == "running"
    opened.click("#pause")
    opened.click("dialog button[value=yes]")
    opened.until("document.querySelector('.title .pill').innerText === 'paused'")
    assert site.store(lambda jobs: jobs.get(JOB.id)).status == "paused"
    opened.until("document.querySelector('#pause').hidden && !document.querySelector('#resume').hidden")
    opened.click("#cancel")
    opened.click("dialog button[value=yes]")
    opened.until("document.querySelector('.title .pill').innerText === 'cancelled'")
    assert site.store(lambda jobs: jobs.get(JOB.id)).status == "cancelled"


def test_what_the_job_says_comes_in_and_troubles_stand_alone(opened: Browser, site: Site) -> None:
    site.store(lambda jobs: jobs.emit_event(JOB.id, "<b>weights</b> are late", level="warn"))
    opened.until_says("<b>weights</b> are late")  # as text: nothing a job says is markup
    opened.click(".choice input")
    visible = "[...document.querySelectorAll('.log li')].filter((li) => li.offsetHeight).map((li) => li.className)"
    assert opened.js(f"return {visible}") == ["warn"]


def test_a_job_that_paused_by_itself_says_why_and_who_waited_for_whom(opened: Browser, site: Site) -> None:
    assert not opened.js("return [...document.querySelectorAll('.why, .still')].some((e) => e.offsetHeight)")
    why = PausedBy("stalled", "no progress for 600 s: learner waits for groups of rollout-0 (598 s)", 1.0)
    waits = [Wait("learner", "groups of rollout-0", 61.0), Wait("rollout-0", "its engine", 0.0)]
    site.store(lambda jobs: jobs.emit_event(JOB.id, "no progress for 61 s", level="warn", data=Standstill(waits)))
    site.store(lambda jobs: jobs.move(JOB.id, "paused", why))
    opened.until("document.querySelector('.why')?.offsetHeight")
    assert "(stalled): no progress for 600 s" in opened.text(".why")
    assert "Resume then continues" in opened.text(".why")
    opened.until("document.querySelector('.still')?.offsetHeight")
    told = "learner waits for groups of rollout-0, 1 min 1 s\nrollout-0 waits for its engine"
    assert opened.text(".still").endswith(told)
    opened.screenshot("job-paused")
    site.store(lambda jobs: jobs.move(JOB.id, "queued"))
    opened.until("document.querySelector('.why').hidden")


def test_empty_charts_say_what_will_come(site: Site, browser: Browser) -> None:
    site.redis(Seeded(0, steps=0, total=200, status="queued", beats=0).store)
    browser.open(f"{site.url}/jobs/{JOB.id}")
    browser.until(DRAWN)
    text = browser.text()
    for says in (
        "After the first step: its mean reward",
        "After the first step: the ages of its tokens",
        "Once workers run",
    ):
        assert says in text
    browser.screenshot("job-empty")


def test_a_job_that_is_not_there(site: Site, browser: Browser) -> None:
    browser.expects("404")
    browser.open(f"{site.url}/jobs/ftjob-none")
    browser.until_says("no job 'ftjob-none'")


def test_the_stream_is_taken_up_again_when_the_gateway_restarts(opened: Browser, site: Site) -> None:
    opened.expects("ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET")
    opened.until("document.getElementById('connection').innerText === 'live'")
    site.stop()
    opened.until_says("the gateway does not answer; trying again")
    site.redis(lambda redis: Seeded(0, steps=140, total=200, workers=3).record(redis, after=130))
    site.start()
    opened.until("document.getElementById('connection').innerText === 'live'")
    opened.until_says("step 140 of 200")
    assert opened.js("return document.querySelectorAll('.log li').length") == 1  # told anew, not twice


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_it_is_read_on_a_phone(site: Site, browser: Browser, colors: str) -> None:
    site.redis(JOB.store)
    browser.look(PHONE, colors)
    browser.open(f"{site.url}/jobs/{JOB.id}")
    browser.until(DRAWN)
    assert browser.overflow() <= 0
    browser.screenshot(f"job-phone-{colors}")


def test_it_is_drawn_again_in_the_dark(opened: Browser) -> None:
    light = opened.js("return document.querySelector('.plane canvas').toDataURL()")
    opened.click("#theme")
    opened.until("document.querySelector('.plane canvas').toDataURL() !== arguments[0]", light)
    opened.screenshot("job-dark")
