"""A gateway that asks for keys, in a browser: in by the form, live as ever, out again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import JobStore
from headrace_core.redis_access.client import run
from headrace_gateway.auth.api_keys import KeyStore
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.browser import PHONE, Browser
from headrace_lab.services.jobs import Seeded

from .conftest import Site

RUNNING = Seeded(0, steps=30, total=80, suffix="running")


@pytest.fixture
def locked(redis_server: RedisServer, tmp_path: Path) -> Iterator[Site]:
    """As `site`, and keys are required."""
    site = Site(redis_server.url, Settings(data_dir=tmp_path, require_keys="on"))
    site.redis(lambda redis: run(redis.flushall()))
    site.start()
    yield site
    site.stop()


def test_in_by_the_form_live_and_out_again(locked: Site, browser: Browser) -> None:
    locked.redis(RUNNING.store)
    _, key = locked.redis(lambda redis: KeyStore(redis).create("ada", "admin"))
    job = f"{locked.url}/jobs/{RUNNING.id}"
    browser.open(job)
    browser.until_says("Log in with your API key")
    assert browser.js("return document.activeElement.id") == "key"
    browser.screenshot("login-light")
    browser.look(PHONE, "dark")
    assert browser.overflow() == 0
    browser.screenshot("login-phone-dark")
    browser.look()

    browser.expects("401")
    browser.type("#key", "hr-wrong")
    browser.click("button")
    browser.until_says("this is no API key of this gateway")
    browser.screenshot("login-wrong")

    browser.type("#key", key)
    browser.click("button")
    browser.until_says("30 of 80")
    assert browser.js("return location.href") == job
    assert browser.js("return document.cookie") == ""
    locked.store(lambda jobs: jobs.emit_event(RUNNING.id, "told while somebody looks"))
    browser.until_says("told while somebody looks")  # the event stream, by the same cookie

    browser.until_says("Log out")
    browser.open(f"{locked.url}/login")
    browser.until_says("You are logged in as ada")
    browser.screenshot("logout")
    browser.click("button")
    browser.until_says("Log in with your API key")
    browser.open(job)
    browser.until_says("Log in with your API key")


def test_a_button_of_the_dashboard_works_by_the_cookie(locked: Site, browser: Browser) -> None:
    locked.redis(RUNNING.store)
    _, key = locked.redis(lambda redis: KeyStore(redis).create("ada", "admin"))
    browser.open(locked.url)
    browser.type("#key", key)
    browser.click("button")
    browser.until_says(RUNNING.id)
    told = browser.driver.execute_async_script(
        "fetch(arguments[0], {method: 'POST'}).then((answer) => arguments[1](answer.status))",
        f"/v1/fine_tuning/jobs/{RUNNING.id}/cancel",
    )
    assert told == 200
    assert locked.redis(lambda redis: JobStore(redis).get(RUNNING.id)).status == "cancelled"


def test_a_session_that_ended_leads_a_page_back_to_the_form(locked: Site, browser: Browser) -> None:
    _, key = locked.redis(lambda redis: KeyStore(redis).create("ada", "admin"))
    browser.open(locked.url)
    browser.type("#key", key)
    browser.click("button")
    browser.until_says("No job yet")
    browser.expects("401")
    browser.driver.delete_all_cookies()
    browser.until_says("Log in with your API key")
    assert browser.js("return location.search") == "?next=%2F"
