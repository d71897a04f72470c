"""Data files and the order of prompts."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_core.errors import InvalidData
from headrace_core.storage.dataset import PromptOrder, read_rows
from headrace_lab.faults.byte_damage import damages

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
        ('{"messages": [{"role": 5, "content": "4"}, {"role": "user", "content": "2"}]}', "`role`, which is text"),
        ('{"messages": [{"role": null, "content": "4"}, {"role": "user", "content": "2"}]}', "`role`, which is text"),
        (r'{"messages": [{"role": "user", "content": "\ud83d"}]}', "half of a character: write whole ones"),
        ('{"messages": [{"role": "user"}]}', "`content`"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "`content` of a message of role 'user' is of type list"),
        ('{"messages": [{"role": "user", "content": null}]}', "is null; write a string, which may be empty"),
        ('{"messages": [{"role": "user"}]}', "`content` of a message of role 'user' is missing"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "2"}, {"type": "image_url"}]}]}',
            "is a list of parts (image_url, text); write the text of its parts as one string",
        ),
        ('{"messages": [{"role": "assistant", "content": "4"}]}', "not 'assistant'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str | bytes, says: str) -> None:
    path = tmp_path / "file-abc"
    path.write_bytes(2 * GOOD.encode() + (line.encode() if isinstance(line, str) else line) + b"\n")
    with pytest.raises(InvalidData, match=r"train\.jsonl, line 3") as caught:
        read_rows(path, name="train.jsonl")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (gzip.compress(GOOD.encode(), mtime=0), "compressed with gzip: decompress it"),
        (bz2.compress(GOOD.encode()), "compressed with bzip2"),
        (lzma.compress(GOOD.encode()), "compressed with xz"),
        (b"PAR1\x15\x04", "a Parquet file: convert its rows"),
        (b"PK\x03\x04\x14\0", "a ZIP archive or a workbook"),
        (b"\xef\xbb\xbf" + GOOD.encode(), "UTF-8 with a byte-order mark at its start: save it without"),
        (GOOD.encode("utf-16"), "UTF-16: save it as UTF-8"),
        (GOOD.encode("utf-16-le"), "UTF-16: save it as UTF-8"),
        (f"[\n  {GOOD},{GOOD}]".encode(), "one JSON array: write each of its objects on a line of its own"),
        (json.dumps(json.loads(GOOD), indent=2).encode(), "JSON spread over several lines"),
        (b"prompt,answer\r\n2+2=,4\r\n", "CSV perhaps"),
        (b"prompt\tanswer\n2+2=\t4\n", "CSV perhaps"),
    ],
)
def test_a_file_of_another_format_is_told_which_it_is(tmp_path: Path, raw: bytes, says: str) -> None:
    (tmp_path / "file-1").write_bytes(raw)
    with pytest.raises(InvalidData, match=r"^train\.jsonl is .*one JSON object on each line \(JSONL\)$") as refused:
        read_rows(tmp_path / "file-1", "train.jsonl")
    assert says in refused.value.message


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
