"""What every command line is expected to have: help that can be read, a version, completion, errors of one line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import Result

from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest, Unavailable
from headrace_gateway.cli.common import service_settings
from headrace_gateway.service.serve import serve
from headrace_lab.services import command_line
from headrace_lab.services.jobs import stored_job

from .conftest import Served

HEAVY = {"fastapi", "httpx", "numpy", "pydantic", "pydantic_settings", "ray", "redis", "torch"}


def headrace(*words: str, **environment: str) -> Result:
    return command_line.headrace(*words, COLUMNS="80", **environment)


def test_help_shows_defaults_and_fills_its_lines() -> None:
    told = headrace("serve", "--help").output
    assert "[default: headrace-data]" in " ".join(told.split())
    assert max(map(len, told.splitlines())) <= 80
    paragraph = told[told.index("Ctrl-C") : told.index("Options:")].strip().splitlines()
    assert len(paragraph[0]) > 60, "its line ends are those of the terminal, not of the source"


@pytest.mark.parametrize("words", [(), ("jobs",), ("jobs", "list"), ("keys", "create"), ("doctor",)])
def test_h_is_help_everywhere(words: tuple[str, ...]) -> None:
    short, long = headrace(*words, "-h"), headrace(*words, "--help")
    assert (short.exit_code, short.output) == (0, long.output)


def test_version_and_completion() -> None:
    assert headrace("--version").output.startswith("headrace 0.")
    assert "--install-completion" in headrace("--help").output
    shown = headrace(_HEADRACE_COMPLETE="complete_bash", COMP_WORDS="headrace jo", COMP_CWORD="1")
    assert "jobs" in shown.output


def test_a_command_imports_what_it_needs_alone() -> None:
    program = f"import sys, headrace_gateway.cli.main; print(*sorted({HEAVY!r} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == []


async def test_a_list_of_jobs_fits_into_80_columns(served: Served) -> None:
    job_id = "ftjob-" + "0123456789abcdef" + "01234567"
    await served.jobs.create(stored_job(job_id, status="running", total_steps=1000))
    told = (await asyncio.to_thread(headrace, "jobs", "list", "--url", served.url, FORCE_COLOR="1")).output
    header, line = told.splitlines()[:2]
    assert max(map(len, told.splitlines())) <= 80
    assert line.split()[:2] == [job_id, "running"]
    for column in ("status", "steps", "reward", "age", "model"):
        assert column in header
    assert "headrace/" in line


@pytest.mark.parametrize("url", ["redis:/bad", "localhost:6379", "http://host:1", "redis://", "unix://", "redis://h:x"])
def test_what_is_no_address_of_a_redis_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^--redis-url: .*: write redis://host:6379/0") as error:
        service_settings(redis_url=url)
    assert error.value.param == "redis_url"


@pytest.mark.parametrize(
    "url", ["redis://host", "rediss://ada@host:6380/1", "unix:///run/redis.sock", "redis://[::1]:1/0"]
)
def test_what_is_one_is_taken(url: str) -> None:
    assert service_settings(redis_url=url).redis_url == url


def test_a_variable_that_no_setting_reads_is_refused_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADRACE_URL", "http://127.0.0.1:9")  # of the commands that speak to a gateway
    service_settings()
    monkeypatch.setenv("HEADRACE_DATADIR", "/data")
    with pytest.raises(
        InvalidRequest, match="HEADRACE_DATADIR: there is no such setting: did you mean HEADRACE_DATA_DIR"
    ):
        service_settings()
    monkeypatch.delenv("HEADRACE_DATADIR")
    monkeypatch.setenv("HEADRACE_HOST_NAMES", "a,b")
    with pytest.raises(InvalidRequest, match="written as JSON"):
        service_settings()


def test_what_serve_cannot_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(
        Unavailable, match=r"data folder .*file cannot be used: .*choose one that this user may write to"
    ):
        serve(Settings(data_dir=file), lambda url, enterable: None)
    with pytest.raises(InvalidRequest, match="models_dir: /nowhere is no folder"):
        serve(Settings(data_dir=tmp_path / "data", models_dir=Path("/nowhere")), lambda url, enterable: None)
    assert not (tmp_path / "data").exists()


def test_an_error_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "headrace_gateway", "keys", "list", "--data-dir", str(tmp_path / "typo")],
        capture_output=True, text=True, check=False, timeout=60, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    assert (told.returncode, told.stdout) == (1, "")
    assert len(told.stderr.strip().splitlines()) == 1
    assert told.stderr.startswith("error: ")


async def test_a_terminal_without_the_characters_shows_others_in_their_place(served: Served) -> None:
    await served.jobs.create(stored_job("ftjob-1", status="running", suffix="carry"))
    command = [sys.executable, "-m", "headrace_gateway", "jobs", "show", "ftjob-1", "--url", served.url]
    ascii_alone = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    told = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=ascii_alone, timeout=60, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert "headrace/tiny-adder ? carry" in told.stdout


def test_a_job_file_is_utf_8_whatever_the_locale_and_may_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "jób.toml"
    path.write_bytes('\ufeffmodel = "é"\ntraining_file = "reasoning_gym:chain_sum"\n[grader]\ntype = "g"\n'.encode())
    program = "import sys; from pathlib import Path; from headrace_gateway.cli import job_file; "
    program += "print(ascii(job_file.read(Path(sys.argv[1])).body['model']))"
    locale = {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_CTYPE")}
    locale |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", program, str(path)]
    told = subprocess.run(command, capture_output=True, text=True, env=locale, timeout=60, check=False)
    assert told.stdout.strip() == "'\\xe9'", told.stderr
