"""A rehearsal: which graders cannot work, and which may though they fail on some completions; no server is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace_core.storage.dataset import Row
from headrace_gateway.grading.plausible_completions import plausible_completions
from headrace_lab.paths import ROOT
from headrace_rewards import grader_check as checking

ROW = Row.of({"messages": [{"role": "user", "content": "40+2="}], "answer": "42"})
SLOW = "import time\ndef grade(completion): time.sleep({})"


async def rehearsed(grader: Any, row: Row = ROW, seconds: float = 30.0, rules: Any = None) -> dict[str, Any]:
    groups = plausible_completions(row)
    request = {
        "grader": grader,
        "samples": [sample for group in groups for sample in group],
        "groups": [len(group) for group in groups],
        "rules": rules or {},
        "tokenizer": str(ROOT / "examples" / "adder" / "model" / "tokenizer.json"),
        "rehearsal": True,
        "seconds": seconds,
    }
    report: dict[str, Any] = msgspec.to_builtins(await checking.check(json.dumps(request).encode()))
    assert report["ok"], report["error"]
    return report


def function(folder: Path, source: str, **fields: Any) -> dict[str, Any]:
    (folder / "user.py").write_text(source)
    return {"type": "function", "name": "mine", "function": f"{folder}/user.py:grade", **fields}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def grade(sample, item): return float(item['reply'] == 1)", "KeyError: 'reply'"),
        ("def grade(completion, reply): return 1.0", "argument 'reply' is neither a known name nor a key of the row"),
        ("def grade(completion): return scor(completion)", "NameError: name 'scor' is not defined"),
        ("def grade(completion): return object()", "invalid_value: the function returned <object object at"),
        ("def grade(completions, answer): return [1.0]", "a list of 1 for 2 completions"),
        ("def grade(completion): return float('nan')", "nan, which is not a finite number"),
        ("def grade(completion): return completion", "invalid_value: the function returned '' (str)"),
        ("def grade(completion): return -1e300 - len(completion)", "which is beyond ±1e+15: scale the reward"),
        ("def grade(completion, item): return completion.index(item['answer'], 'a')", "TypeError"),
        ("import os\ndef grade(completion): os._exit(3)", "crashed"),
    ],
)
async def test_what_fails_whatever_the_completion_is_cannot_work(tmp_path: Path, source: str, says: str) -> None:
    report = await rehearsed(function(tmp_path, source))
    assert report["cannot"].startswith("grader 'mine' cannot work: tried on the first row")
    assert says in report["cannot"]


@pytest.mark.parametrize(
    ("source", "failed"),
    [
        ("def grade(completion): return float(completion.split()[-1] == '42')", 2),
        ("import json\ndef grade(completion): return float(json.loads(completion)['answer'] == '42')", 5),
        ("import re\ndef grade(completion): return float(re.search(r'#### (\\d+)', completion).group(1))", 5),
        ("import re\ndef grade(completion): return len(re.search('<answer>(.*)</answer>', completion).group(1))", 5),
        ("def grade(completions): return [1 / len({*completions, ''} - {''}) for c in completions]", 2),
        ("import statistics as s\ndef grade(completions): return [s.stdev(map(len, completions))] * 2", 0),
        ("def grade(completions, completion_ids): return [float(len(ids)) for ids in completion_ids]", 0),
    ],
)
async def test_what_fails_on_some_completions_may_work_on_others(tmp_path: Path, source: str, failed: int) -> None:
    report = await rehearsed(function(tmp_path, source))
    assert report["cannot"] is None
    assert sum(outcome["type"] == "failure" for outcome in report["outcomes"]) == failed
    assert len(report["remarks"]) == bool(failed)
    assert not failed or f"failed on {failed} of 6 completions" in report["remarks"][0]


@pytest.mark.parametrize("formula", ["good / (good - good)", "log(good - 2)", "exp(1000 + good)", "1e300 + good"])
async def test_a_formula_that_never_has_a_value_cannot_work(formula: str) -> None:
    exact = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_text }}"}
    graders = {"good": exact | {"reference": "{{ item.answer }}"}}
    report = await rehearsed({"type": "multi", "name": "all", "graders": graders, "calculate_output": formula})
    assert "grader 'all' cannot work" in report["cannot"]
    assert "invalid_value: " in report["cannot"]


async def test_the_part_at_fault_is_named(tmp_path: Path) -> None:
    exact = {"type": "string_check", "name": "exact", "operation": "eq", "input": "{{ sample.output_text }}"}
    graders = {
        "good": exact | {"reference": "{{ item.answer }}"},
        "bad": exact | {"name": "typo", "reference": "{{ item.answr }}"},
    }
    grader = {"type": "multi", "name": "all", "graders": graders, "calculate_output": "good + bad"}
    report = await rehearsed({"type": "noisy", "name": "n", "grader": grader})
    assert "grader 'typo' cannot work" in report["cannot"]
    assert "there is no 'item.answr'; 'item' has messages, answer" in report["cannot"]


async def test_an_audit_is_tried_though_it_audits_a_share_of_a_jobs_groups_alone() -> None:
    exact = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_text }}"}
    grader, typo = (exact | {"reference": f"{{{{ item.{key} }}}}"} for key in ("answer", "answr"))
    report = await rehearsed({"type": "audited", "name": "a", "grader": grader, "audit": typo | {"name": "truth"}})
    assert "grader 'truth' cannot work" in report["cannot"]
    assert [outcome["type"] for outcome in report["outcomes"]] == ["score"] * 6
    report = await rehearsed({"type": "audited", "name": "a", "grader": grader, "audit": grader})
    assert report["cannot"] is None


@pytest.mark.parametrize("kind", ["verifree", "jepo", "latro", "rlpr", "majority_vote", "self_certainty", "entropy"])
async def test_what_only_a_policy_can_measure_is_not_refused_for_that(kind: str) -> None:
    report = await rehearsed({"type": kind, "name": "free"})
    assert (report["cannot"], report["remarks"]) == (None, [])


async def test_a_reference_answer_that_the_row_lacks_is_found() -> None:
    lacking = await rehearsed({"type": "verifree", "name": "free", "reference": "> {{ item.reply }}"})
    assert "the row has no reference answer: there is no 'item.reply'" in lacking["cannot"]
    evaluation = {
        "type": "string_check",
        "name": "x",
        "operation": "eq",
        "input": "{{ item.reply }}",
        "reference": "42",
    }
    lacking = await rehearsed({"type": "self_certainty", "name": "free", "evaluation": evaluation})
    assert "grader 'x' cannot work" in lacking["cannot"]


async def test_a_slow_grader_is_given_up_and_taken(tmp_path: Path) -> None:
    report = await rehearsed(function(tmp_path, SLOW.format(60)), seconds=0.5)
    assert report["cannot"] is None
    assert report["remarks"] == ["the grader was not done with 3 small groups of completions within 0.5 s"]


@pytest.mark.slow
async def test_one_that_is_always_too_slow_for_its_own_limit_is_not(tmp_path: Path) -> None:
    report = await rehearsed(function(tmp_path, SLOW.format(60), timeout=0.2))
    assert "timeout: took longer than 0.2 s; raise its timeout" in report["cannot"]


@pytest.mark.parametrize(
    "source",
    [
        "def grade(completions, **kwargs): return [float(c[0]['content'] == '42') for c in completions]",
        "def grade(completion, answer): return float(completion[-1]['content'] == answer)",
        "def grade(prompts, completions): return [len(c[-1]['content']) for c in completions if prompts[0][-1]]",
    ],
)
async def test_the_form_of_a_conversation_is_found(tmp_path: Path, source: str) -> None:
    report = await rehearsed(function(tmp_path, source))
    assert (report["cannot"], report["remarks"]) == (None, [])
    assert report["grader"]["form"] == "messages"
    assert report["outcomes"][2]["value"] > report["outcomes"][0]["value"]
    inner = {"a": function(tmp_path, source), "b": function(tmp_path, source, form="messages")}
    multi = {"type": "multi", "name": "m", "graders": inner, "calculate_output": "a - b"}
    nested = await rehearsed({"type": "noisy", "name": "n", "grader": multi})
    assert [grader["form"] for grader in nested["grader"]["grader"]["graders"].values()] == ["messages", "messages"]
    assert {outcome["value"] for outcome in nested["outcomes"]} == {0.0}


async def test_a_form_that_was_asked_for_stays_and_the_error_says_what_to_change(tmp_path: Path) -> None:
    asked = function(tmp_path, "def grade(completion): return float(completion['content'] == '42')", form="text")
    report = await rehearsed(asked)
    assert report["grader"]["form"] == "text"
    assert "TypeError: string indices must be integers" in report["cannot"]
    assert "set its form to 'messages'" in report["cannot"]
    trips = await rehearsed(function(tmp_path, "def grade(completion): return 1 / (len(completion) - len(completion))"))
    assert (trips["grader"]["form"], "ZeroDivisionError" in trips["cannot"]) == ("text", True)
    plain = await rehearsed(function(tmp_path, "def grade(completion): return float(completion == '42')"))
    assert plain["grader"]["form"] == "text"


class Counting:
    """A server that counts the bytes it is sent."""

    def __init__(self) -> None:
        self.received = self.connections = 0
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionResetError):
            self.received += len(await reader.read())
        writer.transport.abort()
        self.ended.set()


def asking(port: int, kind: str, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rules = {"hosts": ["127.0.0.1"], "judge_url": f"http://127.0.0.1:{port}/v1"}
    if kind == "endpoint":
        return {"type": kind, "name": "judge", "url": f"http://127.0.0.1:{port}/score", **fields}, rules
    question = {"role": "user", "content": "{{ item.answer }} {{ sample.output_json.x }}"}
    labels = {"labels": ["a"], "passing_labels": ["a"]} if kind == "label_model" else {}
    return {"type": kind, "name": "judge", "model": "m", "input": [question], **labels, **fields}, rules


@pytest.mark.parametrize("kind", ["endpoint", "score_model", "label_model"])
async def test_a_server_is_connected_to_and_asked_nothing(kind: str) -> None:
    seen = Counting()
    async with await asyncio.start_server(seen, "127.0.0.1", 0) as server:
        grader, rules = asking(server.sockets[0].getsockname()[1], kind)
        report = await rehearsed(grader, rules=rules)
        await asyncio.wait_for(seen.ended.wait(), 10)
    assert (report["cannot"], report["remarks"], seen.received) == (None, [], 0)
    assert seen.connections >= 1


@pytest.mark.parametrize("kind", ["endpoint", "score_model", "label_model"])
async def test_a_server_that_is_not_there_is_found(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    grader, rules = asking(port, kind)
    if kind != "endpoint":
        grader["input"][0]["content"] = "{{ sample.output_text }}"
    report = await rehearsed(grader, rules=rules)
    assert f"unavailable: http://127.0.0.1:{port} accepts no connection" in report["cannot"]
    assert "start the server first, or set the grader's check_connection to false" in report["cannot"]
    report = await rehearsed(grader | {"check_connection": False}, rules=rules)
    assert (report["cannot"], report["remarks"]) == (None, [])


async def test_a_judges_templates_are_filled() -> None:
    seen = Counting()
    async with await asyncio.start_server(seen, "127.0.0.1", 0) as server:
        grader, rules = asking(server.sockets[0].getsockname()[1], "score_model")
        report = await rehearsed(grader, Row.of({"messages": [], "reply": 1}), rules=rules)
        await asyncio.wait_for(seen.ended.wait(), 10)
    assert "bad_input: there is no 'item.answer'" in report["cannot"]
