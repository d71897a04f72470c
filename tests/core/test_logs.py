"""The log: no line holds a secret, whatever held it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from headrace_core.logs import get_logger, log_libraries, redact_streams
from headrace_core.redaction import conceal, conceal_environment, conceal_password, redacted

KEY = "hr-" + "aB3_-" * 8 + "xyz"
TOKEN = "0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Authorization: Bearer {KEY}", "Authorization: Bearer ***"),
        (f"{{'authorization': 'Bearer {TOKEN}', 'x': 1}}", "{'authorization': 'Bearer ***', 'x': 1}"),
        (f"(b'authorization', b'bearer {TOKEN}')", "(b'authorization', b'bearer ***')"),
        (f"key={KEY}&next=/", "key=hr-***&next=/"),
        (f"cookie: a=b; headrace_session={TOKEN}; c=d", "cookie: a=b; headrace_session=***; c=d"),
        (f"redis://ada:{TOKEN}@host:1", "redis://ada:***@host:1"),
        (f"password='{TOKEN}', user='ada'", "password='***', user='ada'"),
        (f"{{'api_key': '{TOKEN}', 'x': 1}}", "{'api_key': '***', 'x': 1}"),
        (f"HEADRACE_REDIS_PASSWORD={TOKEN}", "HEADRACE_REDIS_PASSWORD=***"),
        (f"key sk-proj-{TOKEN}", "key sk-***"),
        ("Authorization: Basic YWRhOnBhc3N3b3Jk", "Authorization: Basic ***"),
        (f"x-api-key: {TOKEN}", "x-api-key: ***"),
        (f"(b'x-api-key', b'{TOKEN}')", "(b'x-api-key', b'***')"),
        (f"--password {TOKEN} --port 1", "--password *** --port 1"),
        ("{'api_key': 'a b c secret', 'x': 1}", "{'api_key': '***', 'x': 1}"),
        (f'{{"access_token": "{TOKEN}"}}', '{"access_token": "***"}'),
        ("redis_password: Redis' password is given twice", "redis_password: Redis' password is given twice"),
        ("the key's name is hr-1, the bearer of it ada", "the key's name is hr-1, the bearer *** it ada"),
    ],
)
def test_what_is_secret_is_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_secret_without_a_form_is_known_by_its_value() -> None:
    conceal("known/by+its value")
    conceal_password("redis://ada:p%40ssword%21@host:1/0")
    conceal_environment({"REWARD_ENDPOINT_USER": "endpoint-user", "HF_TOKEN": "hugging-token", "PATH": "no-secret"})
    conceal("short")
    conceal(None)
    said = "known/by+its value known%2Fby%2Bits%20value p@ssword! p%40ssword%21 endpoint-user hugging-token"
    assert redacted(f"{said} no-secret short") == f"{' '.join(['***'] * 6)} no-secret short"


def test_a_record_is_changed_only_where_it_holds_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("any")
    logger.warning("%s of %d", "three", 4)
    logger.warning("Bearer %s of %d", KEY, 4)
    logger.warning("%(of)s", {"of": KEY})
    plain, changed, mapped = caplog.records
    assert plain.args == ("three", 4)
    assert (changed.getMessage(), mapped.getMessage()) == ("Bearer *** of 4", "hr-***")


def test_what_is_written_to_a_stream_is_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    redact_streams()
    redact_streams()
    print("printed", KEY)
    sys.stderr.writelines([f"Bearer {TOKEN}\n", "plain\n"])
    assert sys.stdout.encoding.lower() == "utf-8"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("printed hr-***\n", "Bearer ***\nplain\n")


def fails(key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    raise ValueError(f"of a value that is no number: {headers}") from KeyError(key)


def test_a_traceback_shows_places_and_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    password = TOKEN
    try:
        fails(KEY)
    except ValueError as error:
        get_logger(__name__).error("it failed", header=KEY, exc_info=error)
        get_logger(__name__).exception(f"it failed with {KEY}")
    said = capsys.readouterr().out
    assert said.count("fails(KEY)") == 2  # the place
    assert said.count("it failed") == 2
    assert KEY not in said
    assert password not in said
    assert "Bearer ***" in said


def test_what_libraries_log_is_redacted_too(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        log_libraries()
        try:
            fails(KEY)
        except ValueError:
            logging.getLogger("uvicorn.error").exception("request of %s", KEY)
        own = logging.getLogger("of.its.own")  # as vLLM, Ray and transformers do
        own.propagate = False
        own.addHandler(logging.StreamHandler())
        own.error("request of %s", KEY, stack_info=True)
        logging.getLogger("any").info("unheard")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    said = capsys.readouterr().err
    assert "uvicorn.error: request of hr-***" in said
    assert KEY not in said
    assert said.count("request of hr-***") == 2
    assert "unheard" not in said


@pytest.mark.parametrize(
    "module", ["headrace_core.redis_access.client", "headrace_controller.job_controller", "headrace_gateway.app"]
)
def test_who_logs_does_not_have_to_set_it_up(module: str) -> None:
    """A fresh process that imports what it needs, and logs an error there, as a Ray actor does."""
    program = f"""
import os
import {module} as module
secret = os.environ["GIVEN"]
try:
    raise ValueError(secret)
except ValueError:
    module.get_logger("x").exception("failed", of=secret)
"""
    environment = {**os.environ, "GIVEN": KEY, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert "ValueError: hr-***" in ended.stdout
    assert KEY not in ended.stdout + ended.stderr


def test_an_error_of_the_command_line_that_nobody_foresaw_shows_no_key() -> None:
    program = """
import os, sys
import httpx
from headrace_gateway.cli import main
def broken(self, method, path, **arguments):
    shown = dict(self.headers)
    raise RuntimeError(f"nobody foresaw {len(shown)}")
httpx.Client.request = broken
sys.argv = ["headrace", "jobs", "list"]
main.main()
"""
    environment = {**os.environ, "HEADRACE_API_KEY": KEY, "COLUMNS": "400", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert "nobody foresaw" in ended.stderr
    assert KEY not in ended.stdout + ended.stderr
