"""Token ids as text, token by token, by a real tokenizer of bytes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from headrace_core.errors import InvalidState
from headrace_gateway.views.token_text import spelled, tokenizer_of

from .kept_groups import END, MODEL_FOLDER, TOKENIZER


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER.encode(text).ids
    return found


@pytest.mark.parametrize(
    "text",
    ["", "37 + 56 = 93", f"so 93{END}", "héllo, 日本 and 🎉!", "<script>alert(1)</script>\n\t ok", "\u202eabc\u0000"],
)
def test_the_strings_of_the_tokens_are_the_text(text: str) -> None:
    assert "".join(spelled(TOKENIZER, ids(text))) == text
    assert len(spelled(TOKENIZER, ids(text))) == len(ids(text))


def test_a_character_of_several_tokens_stands_with_the_last_of_them() -> None:
    assert spelled(TOKENIZER, ids("a🎉b")) == ["a", "", "", "", "🎉", "b"]


def test_special_tokens_have_their_names() -> None:
    assert spelled(TOKENIZER, ids(f"9{END}")) == ["9", END]


def test_a_character_that_is_cut_off_is_shown_as_the_tokenizer_shows_it() -> None:
    cut = ids("93🎉")[:-1]
    assert "".join(spelled(TOKENIZER, cut)) == TOKENIZER.decode(cut, skip_special_tokens=False) == "93\ufffd"


def test_bytes_that_never_become_a_character_do_not_hold_up_what_follows() -> None:
    garbage = [ids("🎉")[1]] * 4000
    began = time.monotonic()
    found = spelled(TOKENIZER, [*garbage, *ids("93")])
    assert time.monotonic() - began < 0.5, "one window over all of them takes seconds"
    assert found[-2:] == ["9", "3"] or found[-1] == "93"
    assert set("".join(found[:4000])) == {"\ufffd"}
    assert max(map(len, found)) < 20


def test_an_id_that_the_vocabulary_lacks_is_empty() -> None:
    assert spelled(TOKENIZER, [*ids("9"), 10**6, *ids("3")]) == ["9", "", "3"]


def test_a_tokenizer_is_loaded_once_and_again_when_it_changed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, folder)
    first = tokenizer_of(folder)
    assert tokenizer_of(folder) is first
    os.utime(folder / "tokenizer.json", ns=(1, 1))
    assert tokenizer_of(folder) is not first
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InvalidState, match="holds no tokenizer"):
        tokenizer_of(folder)
