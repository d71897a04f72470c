"""docs/evidence.md from evidence/results/*.json: what was claimed, what was seen, on which machine.

A result is what `benchmarks/_report.report` writes. Beside its verdict it may hold

    "table"       [[heading, …], [cell, …], …]        shown as it is
    "thresholds"  {"what must hold": "its limit"}     written before the first run

and a picture of the script's name in docs/images. The claim is the first paragraph of the script's docstring.
"""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

INTRO = """\
# Evidence

<!-- Written by docs/generate.py from evidence/results. Run the scripts, then it. -->

Claims, ours and papers', checked on what a laptop has: small models, fixed seeds, thresholds written before the run.
Each section is one script; `python evidence/<name>.py` runs it again, `make evidence` all of them. A threshold that is
missed stays missed here, with its figure.
"""


def page() -> str:
    """The text of the page."""
    results = [json.loads(path.read_text()) for path in sorted((ROOT / "evidence" / "results").glob("*.json"))]
    rows = [[f"[{r['name']}](#{r['name']})", _verdict(r), _cell(r["figures"])] for r in results]
    sections = [_section(r) for r in results]
    return "\n".join([INTRO, table([["script", "verdict", "figures"], *rows]), *sections])


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Markdown; the first row is the heading."""
    heading, *body = [[_cell(cell) for cell in row] for row in rows]
    lines = [heading, ["---"] * len(heading), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _section(result: dict[str, Any]) -> str:
    name = result["name"]
    parts = [f"## {name}\n", _claim(name), f"**{_verdict(result)}.** {result['figures']}\n"]
    if "thresholds" in result:
        parts.append(table([["must hold", "limit"], *result["thresholds"].items()]))
    if "table" in result:
        parts.append(table(result["table"]))
    if (ROOT / "docs" / "images" / f"{name}.png").is_file():
        parts.append(f"![{name}](images/{name}.png)\n")
    machine = result["machine"]
    seen = time.strftime("%Y-%m-%d", time.gmtime(result["time"]))
    parts.append(
        f"Seed {result['seed']}, {seen}, {machine['cores']} cores, torch {machine['packages']['torch']}; "
        f"[script](../evidence/{name}.py), [result](../evidence/results/{name}.json).\n"
    )
    return "\n".join(parts)


def _claim(name: str) -> str:
    docstring = ast.get_docstring(ast.parse((ROOT / "evidence" / f"{name}.py").read_text())) or ""
    paragraphs = [p for p in docstring.split("\n\n") if not p.startswith("    ")]
    return "\n\n".join(paragraphs[:2]) + "\n"


def _verdict(result: dict[str, Any]) -> str:
    return "PASS" if result["passed"] else "MISS"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")
