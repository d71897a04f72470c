"""Chats through `headrace serve`: with a base model, with what a job trained, and the processes behind them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from headrace_core.storage.dataset import read_rows
from headrace_lab.paths import ADDER
from headrace_lab.services.service import Service
from headrace_lab.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = "headrace/tiny-adder"
ANY_SUM: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "sum",
        "schema": {
            "type": "object",
            "properties": {"sum": {"type": "integer", "maximum": 999, "minimum": 0}},
            "required": ["sum"],
            "additionalProperties": False,
        },
    },
}
QUESTION: list[Any] = [{"role": "user", "content": "What is 37 + 56?"}]
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
LIMIT = 120.0
HOSTILE = "{% if messages[0].content == 'grow' %}{{ 'x' * 2 ** 34 }}{% endif %}{{ messages[0].content }}"
"""A chat template that is well behaved until it is asked not to be."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that keeps a single model loaded, and not for long."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(ADDER / "model", models / "hostile")
    (models / "hostile" / "chat_template.jinja").write_text(HOSTILE)
    settings = {"HEADRACE_CHAT_MODELS": "1", "HEADRACE_CHAT_IDLE_SECONDS": "8", "HEADRACE_MODELS_DIR": str(models)}
    service = Service(tmp_path_factory.mktemp("service") / "data", settings)
    yield service
    family = psutil.Process(service.pid).children(recursive=True)
    assert service.stop() == 0
    _, left = psutil.wait_procs(family, timeout=10)  # a process that has said good-bye to Ray still has to end
    assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []


def actors(service: Service) -> list[psutil.Process]:
    """The processes that chat, by the name that Ray gives them."""
    found = []
    for process in psutil.Process(service.pid).children(recursive=True):
        try:
            if "ChatActor" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def said(service: Service, model: str, messages: list[Any] = QUESTION, **options: Any) -> str:
    answer = service.openai.chat.completions.create(model=model, messages=messages, temperature=0, **options)
    return answer.choices[0].message.content or ""


def streamed(service: Service, model: str) -> str:
    stream = service.openai.chat.completions.create(model=model, messages=QUESTION, temperature=0, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_a_trained_checkpoint_says_what_its_evaluation_heard(service: Service) -> None:
    job_id = service.submit(n_steps=1, eval_interval=1, eval_samples=16, learning_rate=1e-3)
    rows = read_rows(ADDER / "validation.jsonl")[:16]
    before = [said(service, MODEL, [*row.messages], max_tokens=48) for row in rows]  # while the job has every core
    assert said(service, MODEL) == streamed(service, MODEL)
    service.wait(job_id, "succeeded")
    model = service.openai.fine_tuning.jobs.retrieve(job_id).fine_tuned_model
    (checkpoint,) = service.openai.fine_tuning.jobs.checkpoints.list(job_id).data
    assert model is not None

    answers = [said(service, model, [*row.messages], max_tokens=48) for row in rows]
    heard = service.metrics(job_id, "evaluation")[-1]
    given = [[answer.strip() for answer in ANSWER.findall(text)] for text in answers]
    correct = sum(answer == [row.item["answer"]] for answer, row in zip(given, rows, strict=True))
    assert heard["step"] == 1
    assert heard["reward_mean"] == pytest.approx(correct / len(rows))
    assert correct > 0, "a model that says nothing right would agree with any other"
    assert answers != before, "a step changes what is said"

    by_step = checkpoint.fine_tuned_model_checkpoint
    assert said(service, by_step) == streamed(service, by_step) == streamed(service, model)

    folder = Path(service.openai.models.retrieve(model).path)  # type: ignore[attr-defined]
    assert folder.is_dir()
    assert service.openai.models.delete(by_step).deleted
    assert not folder.exists()
    with pytest.raises(openai.NotFoundError):
        said(service, model)


def test_one_model_gives_way_to_another_and_an_idle_one_ends(service: Service) -> None:
    said(service, MODEL)
    (first,) = actors(service)
    said(service, "headrace/tiny-longtail", [{"role": "user", "content": "1 2 3"}], max_tokens=4)
    (second,) = actors(service)
    assert first.pid != second.pid, "the idle one ended for the other"
    wait_until(lambda: not actors(service), "a model that nobody chats with is unloaded")
    assert said(service, MODEL), "and loaded again when it is asked for"


def test_a_hostile_template_harms_neither_the_process_that_chats_nor_other_chats(service: Service) -> None:
    before = said(service, "hostile", max_tokens=4)
    (process,) = actors(service)
    with pytest.raises(openai.BadRequestError, match="needs more than 2 GiB of memory") as refused:
        said(service, "hostile", [{"role": "user", "content": "grow"}])
    assert (refused.value.code, refused.value.param) == ("prompts_too_large", "messages")
    assert said(service, "hostile", max_tokens=4) == before
    assert [p.pid for p in actors(service)] == [process.pid]
    assert process.memory_info().rss < 2**30


def test_a_chat_is_held_to_json(service: Service) -> None:
    assert isinstance(json.loads(said(service, MODEL, response_format=ANY_SUM)), dict)


def test_a_model_whose_process_died_is_loaded_again(service: Service) -> None:
    before = said(service, MODEL)
    (process,) = actors(service)
    process.kill()
    assert said(service, MODEL) == before
    (another,) = actors(service)
    assert another.pid != process.pid


def test_a_busy_model_does_not_give_way_until_its_client_leaves(service: Service) -> None:
    said(service, MODEL)
    with ExitStack() as streams:
        for _ in range(6):  # more completions than are decoded at once
            ask = service.openai.chat.completions.create
            stream = ask(model=MODEL, messages=QUESTION, n=16, temperature=2.0, stream=True)
            next(iter(streams.enter_context(stream)))
        body = {"model": "headrace/tiny-longtail", "messages": QUESTION, "max_tokens": 4}
        refused = httpx.post(f"{service.address}/v1/chat/completions", json=body, timeout=LIMIT)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "chat_models_busy"
    assert f"{MODEL} (" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"]
    patient = service.openai.with_options(max_retries=5)  # comes again when it is told to
    patient.chat.completions.create(model="headrace/tiny-longtail", messages=QUESTION, max_tokens=4)
