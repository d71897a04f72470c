"""The audit of the requirements, with the real pip-audit against a server that speaks OSV's protocol."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from headrace_lab.paths import ROOT, load_module

pytestmark = pytest.mark.slow

audit = load_module(ROOT / "requirements" / "audit.py")
ADVISORY = "GHSA-aaaa-bbbb-cccc"


class Osv(BaseHTTPRequestHandler):
    """Knows one advisory, of jinja2 before 9.0."""

    delay = 0.0

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["package"]
        time.sleep(self.delay)
        bounds = [{"introduced": "0"}, {"fixed": "9.0"}]
        affected = {"package": asked, "ranges": [{"type": "ECOSYSTEM", "events": bounds}]}
        advisory = {"id": ADVISORY, "summary": "it leaks", "aliases": ["CVE-2026-1"], "affected": [affected]}
        body = json.dumps({"vulns": [advisory]} if asked["name"] == "jinja2" else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def osv() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Osv)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cpu.txt").write_text("# why\njinja2==3.1.6\nidna==3.10  # a comment\n")
    return tmp_path


def run(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = audit.main(["--folder", str(folder), *options])
    return status, capsys.readouterr().out


def test_every_requirement_of_ours_is_pinned_and_what_is_accepted_says_why() -> None:
    found = audit.pins(ROOT / "requirements")
    assert len(found) > 150
    assert any(pin.startswith("torch==") for pin in found)
    assert all(audit.accepted(ROOT / "requirements" / "audit.txt").values())


@pytest.mark.parametrize("line", ["jinja2", "jinja2>=3", "jinja2==3.*", "-r other.txt", "git+https://host/x", "a==1;b"])
def test_what_is_not_pinned_fails(folder: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    (folder / "dev.txt").write_text(f"ruff==1\n{line}\n")
    status, said = run(folder, capsys)
    assert (status, f"dev.txt, line 2: '{line}' is not pinned" in said) == (1, True)


def test_a_known_vulnerability_fails_until_it_is_accepted(
    folder: Path, capsys: pytest.CaptureFixture[str], osv: str
) -> None:
    status, said = run(folder, capsys, "--osv-url", osv)
    assert status == 1
    assert "jinja2 3.1.6: CVE-2026-1, fixed in 9.0: move the pin, or list it" in said
    assert "2 packages audited, 1 advisories" in said
    (folder / "audit.txt").write_text(f"# why\n{ADVISORY} 2026-11-23 templates of ours alone are rendered\n")
    status, said = run(folder, capsys, "--osv-url", osv)
    assert (status, "accepted 2026-11-23: templates of ours alone" in said) == (0, True)


@pytest.mark.parametrize("line", [ADVISORY, f"{ADVISORY} because", f"{ADVISORY} 2026-11-23", "2026-11-23 because"])
def test_nothing_is_accepted_without_date_and_reason(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    (folder / "audit.txt").write_text(f"{line}\n")
    status, said = run(folder, capsys)
    assert (status, "audit.txt, line 1: write the advisory's id, a date" in said) == (1, True)


def test_a_service_that_is_not_reached_is_said_and_no_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    status, said = run(folder, capsys, "--osv-url", f"http://127.0.0.1:{port}/v1/query")
    assert (status, "NOT AUDITED: 2 packages: " in said or said.count("NOT AUDITED: 1 packages: ") == 2) == (0, True)
    assert "0 packages audited" in said


def test_a_service_that_is_too_slow_is_given_up(
    folder: Path, capsys: pytest.CaptureFixture[str], osv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Osv, "delay", 3.0)
    status, said = run(folder, capsys, "--osv-url", osv, "--seconds", "1")
    assert (status, "NOT AUDITED: 2 packages: no answer within 1 s" in said) == (0, True)


def test_packages_that_the_service_does_not_know_are_not_called_audited() -> None:
    outcome = audit.Outcome(silent=["3 packages: the advisory service does not know them"] * 2)
    lines, good = audit.judged(outcome, {})
    assert good
    assert lines == [
        "audit: NOT AUDITED: 6 packages: the advisory service does not know them",
        "audit: 0 packages audited, 0 advisories",
    ]
