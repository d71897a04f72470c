"""A Chromium driven by Selenium: pages, waits with limits, screenshots, and the messages of its console."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
DESKTOP, PHONE = (1280, 900), (390, 844)
"""CSS pixels."""
WAIT_SECONDS = 15.0


def start_chromium(profile: Path) -> webdriver.Chrome:
    """A browser with a new profile that logs its console and its network requests."""
    for program in (CHROMIUM, DRIVER):
        assert program.exists(), f"{program} is missing: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    driver.set_script_timeout(WAIT_SECONDS)
    return driver


class Browser:
    """The browser for one test; at first a desktop screen with light colours. Screenshots go to `report`."""

    def __init__(self, driver: webdriver.Chrome, report: Path) -> None:
        self.driver = driver
        self._report = report
        self._expected: list[str] = []
        self._hosts: set[str] = set()
        self.look(DESKTOP)
        driver.get("about:blank")
        driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "all"})
        driver.get_log("browser")
        driver.get_log("performance")

    def look(self, size: tuple[int, int] = DESKTOP, colors: str = "light") -> None:
        """Emulate a screen of this size; `colors` (`light` or `dark`) is the system's preferred colour scheme."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        prefers = {"features": [{"name": "prefers-color-scheme", "value": colors}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", prefers)

    def open(self, url: str) -> None:
        """Open a page; requests to its host are allowed from here on."""
        self._hosts.add(urlsplit(url).netloc)
        self.driver.get(url)

    def js(self, program: str, *arguments: Any) -> Any:
        """Run `program`, the body of a JavaScript function; returns its result, converted by JSON."""
        return self.driver.execute_script(program, *arguments)

    def until(self, holds: str, *arguments: Any, timeout: float = WAIT_SECONDS) -> Any:
        """Wait until the JavaScript expression `holds` is truthy; returns its value. Raises AssertionError."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if value := self.js(f"return ({holds})", *arguments):
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout} s: {holds}\nthe page says: {self.text()[:3000]}\n{self._console()}")

    def until_says(self, text: str, timeout: float = WAIT_SECONDS) -> None:
        """Wait for the page to show this text."""
        self.until("document.body.innerText.includes(arguments[0])", text, timeout=timeout)

    def text(self, selector: str = "body") -> str:
        """The visible text of the element."""
        return str(self.js("return document.querySelector(arguments[0]).innerText", selector))

    def click(self, selector: str) -> None:
        """Click on the element as a person would: it must be in view and not covered."""
        self.driver.find_element("css selector", selector).click()

    def type(self, selector: str, text: str) -> None:
        """Type text into a field, key by key."""
        self.driver.find_element("css selector", selector).send_keys(text)

    def overflow(self) -> int:
        """Pixels by which the page is wider than the screen."""
        return int(self.js("return document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def screenshot(self, name: str) -> Path:
        """Save the whole page as <report folder>/<name>.png; returns the path."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        self._report.mkdir(parents=True, exist_ok=True)
        path = self._report / f"{name}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def expects(self, complaint: str) -> None:
        """Allow console messages that match this regular expression."""
        self._expected.append(complaint)

    def close(self) -> None:
        """Leave the page. Raises AssertionError if it sent requests to other hosts, or logged unexpected messages."""
        self.driver.get("about:blank")
        complaints = {c for c in self._console() if not any(re.search(e, c) for e in self._expected)}
        assert not complaints, complaints
        assert self._requested() <= self._hosts, f"asked {self._requested()}, not only {self._hosts}"

    def _console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def _requested(self) -> set[str]:
        """Hosts that requests were sent to."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in urls if urlsplit(url).scheme not in ("data", "blob", "about")}
