"""docs/evidence.md from evidence/results/*.json: what was claimed, what was seen, on which machine.

A result is what `headrace_lab.reports.benchmark_report.report` writes: verdict, figures, machine, and what the script
adds; `TABLES` says how to show that. A picture of the script's name in docs/images is the script's own, drawn from the
same result. What was done, and how it is to be read, is the script's docstring.
"""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Rows = Sequence[Sequence[Any]]

INTRO = """\
# Evidence

<!-- Written by docs/generate.py from evidence/results. Run the scripts, then it. -->

Claims, our own and papers', checked with the means of a laptop: small models, fixed seeds, thresholds written before
the run. Each section is one script; `python -m evidence.<name>.run` runs it again, `make evidence` all of them. A
missed threshold is reported as a miss, with its figure. A section says which inputs a result has, where the runs
start, how many seeds are counted, and which seeds chose the settings. `--seed` in its last line is the script's
option: counted seeds follow from it, and seed 0 need not be one of them.
"""


def page() -> str:
    """The text of the page."""
    results = [json.loads(path.read_text()) for path in sorted((ROOT / "evidence" / "results").glob("*.json"))]
    rows = [[f"[{r['name']}](#{r['name']})", _verdict(r), _cell(r["figures"])] for r in results]
    sections = [_section(r) for r in results]
    return "\n".join([INTRO, table([["script", "verdict", "figures"], *rows]), *sections])


def table(rows: Rows) -> str:
    """Markdown; the first row is the heading."""
    heading, *body = [[_cell(cell) for cell in row] for row in rows]
    lines = [heading, ["---"] * len(heading), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _staleness(result: dict[str, Any]) -> Rows:
    arms = result["table"]
    bounds = ["∞" if cell["max_staleness"] is None else cell["max_staleness"] for cell in arms["naive"]]
    rows = [[arm, *(" · ".join(f"{a:.1%}" for a in c["accuracies"]) for c in cells)] for arm, cells in arms.items()]
    return [["accuracy of each seed, by age of the data", *bounds], *rows]


TABLES: dict[str, Callable[[dict[str, Any]], Rows]] = {"staleness": _staleness}
"""Where `table` in the result is not rows already."""


def _section(result: dict[str, Any]) -> str:
    name = result["name"]
    parts = [f"## {name}\n", _claim(name), f"**{_verdict(result)}.** {result['figures']}\n"]
    if "thresholds" in result:
        parts.append(table([["must hold", "limit"], *result["thresholds"].items()]))
    if "table" in result:
        parts.append(table(TABLES.get(name, lambda r: r["table"])(result)))
    if (ROOT / "docs" / "images" / f"{name}.png").is_file():
        parts.append(f"![{name}](images/{name}.png)\n")
    machine = result["machine"]
    seen = time.strftime("%Y-%m-%d", time.gmtime(result["time"]))
    parts.append(
        f"`--seed {result['seed']}`, {seen}, {machine['cores']} cores, torch {machine['packages']['torch']}; "
        f"[script](../evidence/{name}/run.py), [result](../evidence/results/{name}.json).\n"
    )
    return "\n".join(parts)


def _claim(name: str) -> str:
    """All that the script says of itself but how to run it."""
    docstring = ast.get_docstring(ast.parse((ROOT / "evidence" / name / "run.py").read_text())) or ""
    paragraphs = [p for p in docstring.split("\n\n") if not p.lstrip().startswith("python -m evidence.")]
    return "\n\n".join(paragraphs) + "\n"


def _verdict(result: dict[str, Any]) -> str:
    return "PASS" if result["passed"] else "MISS"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")
