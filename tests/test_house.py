"""Guards of the layout: who may import whom, what no file may do, and that no setting is dead.

They read the program as text (`ast`), so that they hold for every module, also for those that no other test imports.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from paths import ROOT

PACKAGES = {
    "headrace_core": ROOT / "core" / "headrace_core",
    "headrace_rollout": ROOT / "rollout" / "headrace_rollout",
    "headrace_learner": ROOT / "learner" / "headrace_learner",
    "headrace_rewards": ROOT / "rewards" / "headrace_rewards",
    "headrace_controller": ROOT / "controller" / "headrace_controller",
    "headrace_gateway": ROOT / "gateway" / "headrace_gateway",
}
MAY_IMPORT = {
    "headrace_core": set[str](),
    "headrace_rollout": {"headrace_core", "headrace_rewards"},
    "headrace_learner": {"headrace_core"},
    "headrace_rewards": {"headrace_core"},
    "headrace_controller": {"headrace_core"},
    "headrace_gateway": {"headrace_core", "headrace_controller"},
}
"""Workers are named as text, in `headrace_controller/placement.py` and `headrace_gateway/chat/chat_actor.py`."""
LONGEST_MODULE, LONGEST_FUNCTION = 450, 60
"""Lines."""

MODULES = [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(absolute module name, node) of every import in the tree; relative ones stay within their package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node


def within_functions(tree: ast.Module) -> set[ast.AST]:
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return {inner for function in functions for inner in ast.walk(function)}


def run_python(program: str, folder: Path) -> str:
    """Standard output of a fresh interpreter in `folder`, as a user's would be started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_nothing_logs_past_the_module_that_redacts() -> None:
    past = re.compile(r"structlog\.get_logger|structlog\.wrap_logger|logging\.getLogger\([^)]*\)\.(?!setLevel)")
    found = [name_of(path) for _, path in MODULES if path.name != "logs.py" and past.search(path.read_text())]
    assert found == []


# ── who may import whom ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_package_is_there() -> None:
    found = {package for package, _ in MODULES}
    assert found == set(PACKAGES)
    assert len(MODULES) > 50


def test_core_imports_nothing_heavy(tmp_path: Path) -> None:
    modules = [
        ".".join(p.relative_to(ROOT / "core").with_suffix("").parts)
        for p in sorted(PACKAGES["headrace_core"].rglob("*.py"))
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'vllm', 'ray', 'fastapi', 'transformers', 'starlette', 'uvicorn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(program, tmp_path).strip() == "[]"


@pytest.mark.parametrize(("package", "path"), MODULES, ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_services_meet_in_core_only(package: str, path: Path) -> None:
    for module, node in imports(parsed(path)):
        other = module.split(".")[0]
        where = f"{name_of(path)}, line {getattr(node, 'lineno', 0)}: imports {module}"
        assert other not in PACKAGES or other == package or other in MAY_IMPORT[package], where


def test_the_service_runs_from_a_folder_with_modules_of_its_names(tmp_path: Path) -> None:
    """RL users have folders called `rewards`; a service must not trip over them."""
    hostile = "raise RuntimeError('a file of the user was imported')\n"
    for name in ("rewards", "rollout", "learner", "gateway"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(hostile)
    for name in ("core", "staleness", "trajectory", "worker", "errors", "keys", "metrics"):
        (tmp_path / f"{name}.py").write_text(hostile)
    names = {".".join(p.relative_to(PACKAGES[k].parent).with_suffix("").parts) for k, p in MODULES}
    light = sorted(n.removesuffix(".__init__") for n in names if not re.search(r"vllm|__main__", n))
    program = f"import importlib\nfor name in {light!r}: importlib.import_module(name)\nprint('all')"
    assert run_python(program, tmp_path).strip() == "all"


# ── what no file may do ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("package", "path"), MODULES, ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_no_pickle(package: str, path: Path) -> None:
    """Neither imported nor reached through a library: what comes over a wire or from a store is never executed."""
    tree = parsed(path)
    picklers = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    assert not {module.split(".")[0] for module, _ in imports(tree)} & picklers
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        where = f"{name_of(path)}, line {call.lineno}"
        target = ast.unparse(call.func)
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if target == "torch.load":
            assert options.get("weights_only") == "True", where
        if target in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False", where


@pytest.mark.parametrize(("package", "path"), MODULES, ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_modules_and_functions_stay_short(package: str, path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE, name_of(path)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{name_of(path)}: {node.name} has {lines} lines"


def test_every_module_says_what_it_is_for() -> None:
    silent = [name_of(p) for _, p in MODULES if p.name != "__init__.py" and not ast.get_docstring(parsed(p))]
    assert silent == []


# ── no dead settings ─────────────────────────────────────────────────────────────────────────────────────────────────


def attributes_read(paths: list[Path]) -> set[str]:
    """Every `name` that is read as `something.name`."""
    nodes = (n for path in paths for n in ast.walk(parsed(path)))
    return {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}


def read_through_a_property(source: Path, outside: set[str]) -> set[str]:
    """Fields that a method or property of their own class reads, where that one is used outside."""
    found = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.FunctionDef) and node.name in outside:
            inner = (n for n in ast.walk(node) if isinstance(n, ast.Attribute))
            found |= {n.attr for n in inner if ast.unparse(n.value) == "self"}
    return found


def unread(model: type[Hyperparameters] | type[Settings], source: Path, readers: set[str]) -> list[str]:
    outside = attributes_read([path for package, path in MODULES if package in readers])
    return sorted(set(model.model_fields) - outside - read_through_a_property(source, outside))


def test_every_setting_of_a_job_is_read_by_a_service() -> None:
    services = set(PACKAGES) - {"headrace_core"}
    assert unread(Hyperparameters, PACKAGES["headrace_core"] / "config" / "hyperparameters.py", services) == []


def test_every_setting_of_the_service_is_read_by_the_gateway() -> None:
    assert (
        unread(
            Settings,
            PACKAGES["headrace_core"] / "config" / "service_settings.py",
            {"headrace_gateway", "headrace_controller"},
        )
        == []
    )
