"""Rows become prompts at a worker's start; one that no engine can serve is named with its line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from headrace_core.errors import InvalidData
from headrace_rollout.prompts import Tokenizer, read_prompts

ADDER = Path(__file__).parents[2] / "examples" / "adder" / "model"


def adder(folder: Path, template: str | None, **config: Any) -> Tokenizer:
    """The adder's tokenizer, with another chat template (None: a base model without one) and another config.json."""
    shutil.copytree(ADDER, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    names = json.loads((folder / "tokenizer_config.json").read_text())
    names.pop("chat_template", None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return Tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "config", "content", "code"),
    [
        (None, {}, "", "prompt_empty"),
        (None, {}, "1 + " * 40, "prompt_too_long"),
        (None, {"vocab_size": 4}, "9", "prompt_unknown_token"),
        ("{{ raise_exception('no') }}", {}, "9", "invalid_data"),
        ("{{ messages[5].content }}", {}, "9", "invalid_data"),
    ],
)
def test_a_row_that_no_engine_can_serve_is_named_with_its_line(
    tmp_path: Path, template: str | None, config: dict[str, Any], content: str, code: str
) -> None:
    file = tmp_path / "file-1"
    file.write_text("\n\n" + json.dumps({"messages": [{"role": "user", "content": content}]}) + "\n")
    with pytest.raises(InvalidData, match=r"^file-1, line 3: ") as refusal:
        read_prompts(file, adder(tmp_path / "model", template, **config), 20)
    assert refusal.value.code == code
