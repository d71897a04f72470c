"""Data files and the order of prompts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import damages
from headrace_core.data import PromptOrder, read_rows
from headrace_core.errors import InvalidData

GOOD = '{"messages": [{"role": "user", "content": "2+2="}], "answer": "4"}\n'


def test_rows_and_their_items(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(GOOD + "\n   \n" + GOOD.replace("2+2", "3+3"))
    rows = read_rows(path)
    assert [r.messages[0]["content"] for r in rows] == ["2+2=", "3+3="]
    assert rows[0].item == {"messages": [{"role": "user", "content": "2+2="}], "answer": "4"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        (b'"\xff"', "not JSON"),
        ("[]", "list `messages`"),
        ('{"messages": []}', "list `messages`"),
        ('{"messages": "hello"}', "list `messages`"),
        ('{"messages": ["hello"]}', "`role`"),
        ('{"messages": [{"role": "user"}]}', "`content`"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "text `content`"),
        ('{"messages": [{"role": "assistant", "content": "4"}]}', "not 'assistant'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str | bytes, says: str) -> None:
    path = tmp_path / "file-abc"
    path.write_bytes(2 * GOOD.encode() + (line.encode() if isinstance(line, str) else line) + b"\n")
    with pytest.raises(InvalidData, match=r"train\.jsonl, line 3") as caught:
        read_rows(path, name="train.jsonl")
    assert says in str(caught.value)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n\n")
    with pytest.raises(InvalidData, match=r"empty\.jsonl holds no rows"):
        read_rows(path)


@given(rows=st.integers(1, 40), seed=st.integers(0, 2**32), number=st.integers(0, 50), data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_pass_is_a_permutation_and_the_same_for_all(
    rows: int, seed: int, number: int, data: st.DataObject
) -> None:
    order = PromptOrder(rows, seed)
    taken = [order.row(number * rows + i) for i in range(rows)]
    assert sorted(taken) == list(range(rows))
    asked = data.draw(st.lists(st.integers(0, 60 * rows), max_size=20))  # another worker sees other groups before
    other = PromptOrder(rows, seed)
    for group_id in asked:
        other.row(group_id)
    assert [other.row(number * rows + i) for i in range(rows)] == taken


def test_passes_and_seeds_differ() -> None:
    passes = [
        tuple(PromptOrder(50, seed).row(i) for i in range(start, start + 50)) for seed in (0, 1) for start in (0, 50)
    ]
    assert len(set(passes)) == 4


def test_a_file_that_is_not_what_was_uploaded_is_refused_by_name(tmp_path: Path) -> None:
    whole = b'{"messages": [{"role": "user", "content": "2 + 2"}], "answer": "4"}\n' * 20
    told, file = hashlib.sha256(whole).hexdigest(), tmp_path / "file-1"
    file.write_bytes(whole)
    assert len(read_rows(file, "train.jsonl", told)) == 20
    for what, raw in damages(whole):
        file.write_bytes(raw)
        with pytest.raises(InvalidData, match=r"train.jsonl is not what was uploaded: .*file-1 changed") as refused:
            read_rows(file, "train.jsonl", told)
        assert "upload it again" in refused.value.message, what
    file.unlink()
    with pytest.raises(InvalidData, match=r"file-1: No such file or directory; upload it again"):
        read_rows(file, "train.jsonl", told)


def test_any_damage_without_a_sum_is_rows_or_named(tmp_path: Path) -> None:
    whole = b'{"messages": [{"role": "user", "content": "2 + 2"}], "answer": "4"}\n' * 2
    named = 0
    for what, raw in damages(whole):
        (tmp_path / "train.jsonl").write_bytes(raw)
        try:
            assert read_rows(tmp_path / "train.jsonl"), what
        except InvalidData as error:
            assert error.message.startswith("train.jsonl"), what  # noqa: PT017
            named += 1
    assert named > 20
