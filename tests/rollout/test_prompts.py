"""Rows become prompts at a worker's start; one that no engine can serve is named with its line."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace_core.errors import MAX_QUOTED_TEXT, InvalidData
from headrace_lab.paths import ADDER
from headrace_rollout.prompts import Tokenizer, read_prompts
from headrace_rollout.reading import read_within_limits

MODEL = ADDER / "model"


def adder(folder: Path, template: str | None, **config: Any) -> Tokenizer:
    """The adder's tokenizer, with another chat template (None: a base model without one) and another config.json."""
    shutil.copytree(MODEL, folder)
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


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% if i < 0 %}x{% endif %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("does", "code", "why"),
    [
        pytest.param(ENDLESS, "prompts_too_slow", "not rendered within 1 s", id="endless", marks=pytest.mark.slow),
        pytest.param("{{ 'x' * 2 ** 34 }}", "prompts_too_large", "more than 0.5 GiB of memory", id="grows"),
        pytest.param("{{ 1 // 0 }}", "invalid_data", "division", id="raises"),
        pytest.param(
            "{{ raise_exception('no ' * 10000000 ~ 'tools') }}", "invalid_data", "no tools", id="raises megabytes"
        ),
    ],
)
def test_a_template_beyond_its_limits_ends_the_reading_with_its_line(
    tmp_path: Path, does: str, code: str, why: str
) -> None:
    """In a process of its own, which such a template takes with it: it reads as a worker does, and ends."""
    tokenizer = f"{{% if messages[0].content == 'hostile' %}}{does}{{% endif %}}{{{{ messages[0].content }}}}"
    adder(tmp_path / "model", tokenizer)
    rows = [{"messages": [{"role": "user", "content": content}]} for content in ("1 + 1", "hostile")]
    (tmp_path / "rows").write_text("\n".join(json.dumps(row) for row in rows))
    program = (
        "import asyncio, json, sys\n"
        "from pathlib import Path\n"
        "from headrace_core.errors import InvalidData\n"
        "from headrace_rollout import reading\n"
        "from headrace_rollout.prompts import Tokenizer\n"
        "reading.ROW_SECONDS, reading.ROOM_BYTES = 1.0, 2**29\n"
        "try:\n"
        "    asyncio.run(reading.read_within_limits(Path('rows'), Tokenizer(Path('model')), 100, None))\n"
        "except InvalidData as error:\n"
        "    print(json.dumps([error.code, error.message]))\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    told, message = json.loads(ended.stdout)
    assert told == code
    assert message.startswith("rows, line 2: ")
    assert why in message
    assert len(message) < 2 * MAX_QUOTED_TEXT


async def test_rows_are_read_within_limits_as_without() -> None:
    tokenizer, file = Tokenizer(MODEL), ADDER / "validation.jsonl"
    before = resource.getrlimit(resource.RLIMIT_DATA)
    found = await read_within_limits(file, tokenizer, 64, None)
    assert [p.token_ids.tolist() for p in found] == [p.token_ids.tolist() for p in read_prompts(file, tokenizer, 64)]
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
