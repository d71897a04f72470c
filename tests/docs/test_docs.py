"""The documentation held to the code: what is described exists, and what exists is described."""

from __future__ import annotations

import ast
import doctest
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import typer.main
from fastapi import FastAPI
from fastapi.routing import APIRoute

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_core.types.events import StepSummary, encoded
from headrace_core.types.metrics import AgeMetrics, StepMetrics
from headrace_gateway.app import create_app
from headrace_gateway.cli import job_file, main
from headrace_gateway.schemas.jobs import Method
from headrace_lab.paths import ROOT, load_module
from headrace_rewards.grader_check import check
from headrace_rewards.registry import GRADERS, validate

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SOURCES = [
    p for part in ("core", "rollout", "learner", "rewards", "gateway") for p in sorted((ROOT / part).rglob("*.py"))
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CLIENT_VARIABLES = {"HEADRACE_URL", "HEADRACE_API_KEY"}
"""Read by the command line; no setting of the service."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def examples(language: str) -> list[Any]:
    """Every fenced block of that language, as test cases named by page and number."""
    return [
        pytest.param(text, id=f"{name_of(page)}-{number}")
        for page in PAGES
        for number, text in enumerate(blocks(page, language))
    ]


# ── generated pages ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    pages = [DOCS / f"{name}_page.py" for name in ("cli", "evidence", "exporters")]
    return load_module(DOCS / "generate.py", *pages)


@pytest.mark.parametrize("page", ["settings.md", "metrics.md", "cli.md", "exporters.md", "evidence.md"])
def test_generated_pages_are_up_to_date(generate: ModuleType, page: str) -> None:
    fresh = generate.pages()[page]
    assert (DOCS / page).read_text() == fresh, "run `.venv/bin/python docs/generate.py`"


def test_every_setting_is_on_its_page() -> None:
    page = (DOCS / "settings.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert set(Hyperparameters.model_fields) <= documented
    assert {f"HEADRACE_{name.upper()}" for name in Settings.model_fields} <= documented


def test_the_event_of_a_step_has_the_documented_fields() -> None:
    age = AgeMetrics(tokens=9, masked=0, effective_sample_size=1.0, clip_share=0.0, behaviour_kl=0.0)
    values: dict[str, Any] = dict.fromkeys(StepMetrics.__struct_fields__, 0) | {"ages": {"1": age}}
    data = encoded(StepSummary.of(StepMetrics(**values), max_staleness=4))
    section = (DOCS / "metrics.md").read_text().partition("## `data` of a metrics event")[2]
    names = [
        name for row in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(data) == sorted(names)
    assert sorted(data["staleness"]) == ["age_max", "age_mean", "bound"]
    assert all(f"`{name}`" in section for name in data["staleness"])


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ROUTE = re.compile(r"^\| (GET|POST|PUT|PATCH|DELETE) \| `([^`]+)` \|([^|]*)\|(.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(), "redis://127.0.0.1:1")  # nothing connects before it is started


def test_every_route_is_documented_with_its_parameters_and_no_other(app: FastAPI) -> None:
    described = {
        (method, path): set(re.findall(r"`([^`]+)`", parameters))
        for method, path, parameters, what in ROUTE.findall((DOCS / "api.md").read_text())
        if what
    }
    served = {
        (method.upper(), path): {p["name"] for p in operation.get("parameters", []) if p["in"] != "path"}
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    assert described == served


def test_every_page_is_documented_and_no_other(app: FastAPI) -> None:
    pages = {path for _, path, _, what in ROUTE.findall((DOCS / "api.md").read_text()) if not what}
    served = {r.path for r in app.routes if isinstance(r, APIRoute) and not r.include_in_schema}
    assert pages == served
    assert app.docs_url is None, "FastAPI's page would load its scripts from a public host"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_text_are_routes(app: FastAPI, page: Path) -> None:
    served = [re.sub(r"\{[^}]*\}", r"[^/]+", path) + "$" for path in app.openapi()["paths"]]
    for found in re.findall(r"/v1/[\w/{}$.-]+", page.read_text()):
        path = found.rstrip(".")
        assert path == "/v1" or any(re.match(route, path) for route in served), path


# ── the command line, make, and the environment ──────────────────────────────────────────────────────────────────────


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `headrace` of every command that a page shows, in a block or in line."""
    text = page.read_text()
    shown = [line for block in blocks(page, "sh") for line in block.splitlines()]
    shown += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    for line in shown:
        words = shlex.split(line, comments=True) if re.match(r"(\.venv/bin/)?headrace( |$)", line) else []
        if len(words) > 1:
            yield words[1:]


def assert_exists(words: list[str]) -> None:
    command: Any = typer.main.get_command(main.app)
    words = list(words)
    while hasattr(command, "commands") and words:
        word = words.pop(0)
        context = typer.Context(command)
        assert word in command.list_commands(context), f"headrace has no command {word!r}"
        command = command.get_command(context, word)
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in options, f"{command.name} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        assert_exists(words)


def test_commands_are_looked_for_where_they_stand() -> None:
    shown = [words for page in PAGES for words in commands(page)]
    assert ["serve"] in shown
    assert ["train", "examples/adder/job.toml"] in shown
    assert any(words[:2] == ["jobs", "show"] for words in shown)


def test_a_wrong_command_would_be_found() -> None:
    for wrong in (["start"], ["jobs", "stop"], ["serve", "--workers=2"]):
        with pytest.raises(AssertionError):
            assert_exists(wrong)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line.partition("#")[0] for block in blocks(page, "sh") for line in block.splitlines()]
    lines += re.findall(r"`(make[^`]*)`", page.read_text())
    for line in lines:
        if line.startswith("make "):
            words = {word for word in line.split()[1:] if "=" not in word}  # N=100 sets a variable
            assert words <= targets, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_environment_variables_are_settings(page: Path) -> None:
    known = {f"HEADRACE_{name.upper()}" for name in Settings.model_fields} | CLIENT_VARIABLES
    assert set(re.findall(r"HEADRACE_[A-Z_]+[A-Z]", page.read_text())) <= known


# ── links and paths ──────────────────────────────────────────────────────────────────────────────────────────────────


def links(page: Path) -> list[str]:
    prose = BLOCK.sub("", page.read_text())
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


LINKS = [pytest.param(page, target, id=f"{name_of(page)}-{target}") for page in PAGES for target in links(page)]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_links_and_images_resolve(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.is_relative_to(ROOT)
    assert file.exists()
    if anchor:
        assert anchor in anchors(file)


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = set[Path](), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            found = ((page.parent / target.partition("#")[0]).resolve() for target in links(page))
            todo += [f for f in found if f.suffix == ".md" and f.exists()]
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_in_text_exist(page: Path) -> None:
    packages = "core|rollout|learner|rewards|controller|gateway|lab|simulation|chaos"
    folders = rf"(?:{packages}|tests|docs|docker|examples|benchmarks|evidence)"
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text())  # links have a test of their own
    for found in re.findall(rf"(?<![\w/.]){folders}/[\w./-]*\w/?", text):
        assert (ROOT / found).exists(), found


def test_pages_that_the_code_names_exist() -> None:
    named = {found for source in SOURCES for found in re.findall(r"docs/[\w/-]+\.md", source.read_text())}
    assert len(named) > 1
    assert not [page for page in named if not (ROOT / page).is_file()]


# ── examples ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_a_language_that_a_test_reads(page: Path) -> None:
    assert {language for language, _ in BLOCK.findall(page.read_text())} <= {"python", "json", "toml", "sh"}


@pytest.mark.parametrize("text", examples("json"))
def test_json_examples_parse(text: str) -> None:
    value = json.loads(text)
    if "method" in value:
        Method.model_validate(value["method"])
    needs_code = value.get("type") == "registered" or ".py:" in text
    if value.get("type") in GRADERS and not needs_code:
        GRADERS[value["type"]].spec.model_validate(value)


@pytest.mark.parametrize("text", examples("toml"))
def test_job_files_are_ones(text: str, tmp_path: Path) -> None:
    for name in ("train.jsonl", "validation.jsonl", "reward.py"):
        (tmp_path / name).touch()
    file = tmp_path / "job.toml"
    file.write_text(text)
    assert_a_job(file)


def test_the_examples_job_file_is_one() -> None:
    assert_a_job(ROOT / "examples" / "adder" / "job.toml")


def assert_a_job(file: Path) -> None:
    read = job_file.read(file)
    method = Method.model_validate(read.body["method"])
    assert method.reinforcement.hyperparameters.n_steps is not None
    assert "training_file" in read.uploads
    GRADERS[method.reinforcement.grader["type"]].spec.model_validate(method.reinforcement.grader)
    Hyperparameters.model_validate(tomllib.loads(file.read_text())["hyperparameters"])


@pytest.mark.parametrize("text", examples("python"))
def test_python_examples_parse(text: str) -> None:
    if ">>>" not in text:  # those are run, below
        ast.parse(text)


def readme_nodes() -> list[ast.AST]:
    return [node for text in blocks(ROOT / "README.md", "python") for node in ast.walk(ast.parse(text))]


def test_the_jobs_submitted_in_the_readme_are_jobs() -> None:
    calls = [n for n in readme_nodes() if isinstance(n, ast.Call)]
    creates = [c for c in calls if ast.unparse(c.func) == "client.fine_tuning.jobs.create"]
    assert len(creates) == 2
    for create in creates:
        written = next(ast.literal_eval(k.value) for k in create.keywords if k.arg == "method")
        validate(Method.model_validate(written).reinforcement.grader)


def test_the_graders_and_settings_of_the_readme_are_valid() -> None:
    given = [(ast.unparse(n.targets[0]), n.value) for n in readme_nodes() if isinstance(n, ast.Assign)]
    graders = [ast.literal_eval(value) for name, value in given if name == "grader"]
    settings = [ast.literal_eval(value) for name, value in given if name == "hyperparameters"]
    assert len(graders) == len(settings) == 2
    for grader in graders:
        validate(grader)
    for chosen in settings:
        Hyperparameters.model_validate(chosen)


async def test_the_reward_of_the_readme_rewards(tmp_path: Path) -> None:
    (text,) = [t for t in blocks(ROOT / "README.md", "python") if t.startswith("# reward.py")]
    (tmp_path / "reward.py").write_text(text)
    samples = [{"output_text": f"so <answer> {n} </answer>", "item": {"answer": "93"}} for n in (93, 83)]
    assert await scores(tmp_path / "reward.py", "correct", samples) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("function", "expected"), [("one_at_a_time", [1.0, 0.0]), ("components", [1.1, 0.1]), ("whole_group", [0.9, -0.1])]
)
async def test_the_functions_of_the_rewards_page_reward(tmp_path: Path, function: str, expected: list[float]) -> None:
    (text,) = blocks(DOCS / "rewards.md", "python")
    (tmp_path / "rewards.py").write_text(text)
    samples = [{"output_text": output, "item": {"answer": "93"}} for output in ("it is 93", "it is 83")]
    assert await scores(tmp_path / "rewards.py", function, samples) == pytest.approx(expected)


async def scores(file: Path, function: str, samples: list[dict[str, Any]]) -> list[float]:
    grader = {"type": "function", "name": "documented", "function": f"{file}:{function}"}
    report = await check(json.dumps({"grader": grader, "samples": samples}).encode())
    assert report.ok, report.error
    return [outcome.value for outcome in report.outcomes]  # type: ignore[union-attr]


def test_every_grader_has_a_section() -> None:
    titles = re.findall(r"^###? (`.*):", (DOCS / "rewards.md").read_text(), re.MULTILINE)
    assert sorted(kind for title in titles for kind in re.findall(r"`(\w+)`", title)) == sorted(GRADERS)


def test_the_worked_example_of_staleness_holds() -> None:
    failed, run = doctest.testfile(str(DOCS / "staleness.md"), module_relative=False)
    assert run >= 10
    assert failed == 0


# ── decisions ────────────────────────────────────────────────────────────────────────────────────────────────────────

DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_says_what_when_and_why(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.name[:4]}: ")
    assert re.search(r"^Date: \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequence"]


def test_decisions_are_numbered_and_listed() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    listed = re.findall(r"\]\((\d{4}[\w-]*\.md)\)", (DOCS / "decisions" / "README.md").read_text())
    assert listed == [page.name for page in DECISIONS]
