"""One job through the whole system, watched in the browser as a person would: from an empty list to its success."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_lab.browser import Browser
from headrace_lab.services.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STEPS = 40
"""So many that a look at the page, also on a busy machine, finds it in the midst of them."""
STATUS = "document.querySelector('.title .pill')?.innerText"
HEAT = "document.querySelector('.plane canvas').toDataURL()"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "data")
    yield service
    assert service.stop() == 0


def test_a_job_is_watched_from_submission_to_success(service: Service, browser: Browser) -> None:
    browser.open(service.address)
    browser.until_says("No job yet")
    job_id = service.submit(n_steps=STEPS)
    browser.until_says(job_id)
    browser.click(".job .name a")
    browser.until(f"{STATUS} === 'running'", timeout=180)
    browser.until(f"/step ([1-9]|[12][0-9]) of {STEPS}/.test(document.body.innerText)", timeout=180)
    browser.until("document.querySelector('.plane .nothing').hidden")
    first = browser.js(f"return {HEAT}")
    browser.until(f"{STATUS} === 'succeeded'", timeout=240)
    browser.until("document.getElementById('connection').innerText === 'ended'")
    assert browser.js(f"return {HEAT}") != first
    text = browser.text()
    ledger = service.get(f"/v1/fine_tuning/jobs/{job_id}/ledger")
    trained, oldest = ledger["states"]["trained"], ledger["largest_age"]
    for says in (f"step {STEPS} of {STEPS}", f"trained {trained}", f"{oldest} of 4", "ft:headrace/"):
        assert says in text
    assert browser.text(".balance").startswith(f"✓ {ledger['admitted']} admitted")
    assert browser.js("return document.querySelectorAll('.split').length") == 2
    browser.screenshot("watched")
    browser.open(service.address)
    browser.until_says("succeeded")
    assert f"step {STEPS} of {STEPS}" in browser.text(".job")
