"""Guards of the layout: who may import whom, what no file may do, and that no setting is dead.

They read the program as text (`ast`), so that they hold for every module, also for those that no other test imports.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from headrace_controller import placement
from headrace_core.config.hyperparameters import Hyperparameters
from headrace_core.config.service_settings import Settings
from headrace_gateway.chat import chat_actor
from headrace_gateway.cli import main as cli_main
from headrace_lab.paths import ROOT

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


@pytest.mark.slow
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


# ── rooms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def constant(module: str, name: str) -> str:
    """A text constant of a module that is slow to import."""
    for node in parsed(ROOT / module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return str(ast.literal_eval(node.value))
    raise LookupError(f"{module} has no {name}")


MOST_MODULES = 16
"""Of one folder; `graders` holds one file a type."""
NAMED_IN_TEXT = (
    placement.ROLLOUT_ENTRY_POINT,
    placement.LEARNER_ENTRY_POINT,
    placement.RANK_ENTRY_POINT,
    chat_actor.CHAT,
    constant("rollout/headrace_rollout/engines/vllm/launch.py", "WORKER_EXTENSION"),
    *(f"headrace_gateway.cli.{place}" for place in cli_main.SUBCOMMANDS.values()),
)
"""`module:name`, which no import shows and no tool renames."""
RUN_AS_PROGRAMS = (
    "headrace_gateway",
    "headrace_gateway.exporters",
    "headrace_gateway.limited_processes.fork_server",
    "headrace_rewards",
    "headrace_rewards.sandbox.guard",
)
"""`python -m`."""


def dotted(path: Path) -> str:
    """The name by which a module or package is imported."""
    package = next(folder for folder in PACKAGES.values() if path.is_relative_to(folder))
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Modules of this project that a module imports anywhere, also inside functions."""
    importer = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULE_NAMES)
        elif isinstance(node, ast.ImportFrom):
            start = importer[: len(importer) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in MODULE_NAMES or base in MODULE_NAMES:
                    yield inner if inner in MODULE_NAMES else base


MODULE_NAMES = {dotted(path) for _, path in MODULES}
IMPORTS = {dotted(path): set(imported(path)) - {dotted(path)} for _, path in MODULES}


def room_of(module: str) -> str:
    """The folder below its package, or the module itself where it lies in none."""
    return ".".join(module.split(".")[:2])


def in_circles(edges: dict[str, set[str]]) -> list[str]:
    """What is left of a graph when whatever imports nothing that is left has been taken away, again and again."""
    left = {name: set(others) for name, others in edges.items()}
    while done := [name for name, others in left.items() if not others & left.keys()]:
        for name in done:
            del left[name]
    while True:  # likewise what nothing that is left imports: it only leads to a circle
        reached = set[str]().union(*left.values())
        if not (done := [name for name in left if name not in reached]):
            return sorted(left)
        for name in done:
            del left[name]


def test_circles_are_found() -> None:
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set(), "e": {"d"}}) == ["b", "c"]


def test_no_module_imports_itself_through_others() -> None:
    """A package's `__init__` is not part of a circle by being a folder; what it imports itself counts."""
    assert in_circles(IMPORTS) == []


def test_a_room_imports_only_rooms_below_it() -> None:
    rooms: dict[str, set[str]] = {}
    for module, others in IMPORTS.items():
        here = room_of(module)
        rooms.setdefault(here, set()).update(room_of(other) for other in others if room_of(other) != here)
    assert len(rooms) > 30
    assert in_circles(rooms) == []


def test_no_folder_holds_more_than_a_reader_can_survey() -> None:
    folders = {path.parent for _, path in MODULES} | {path.parent for path in (ROOT / "lab").rglob("*.py")}
    crowded = {
        name_of(folder): count
        for folder in folders
        if (count := sum(1 for p in folder.glob("*.py") if p.name != "__init__.py")) > MOST_MODULES
    }
    assert set(crowded) <= {"rewards/headrace_rewards/graders"}


def test_a_class_name_has_one_meaning() -> None:
    found: dict[str, list[str]] = {}
    for _, path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name_of(path))
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert twice == {}


@pytest.mark.parametrize("place", NAMED_IN_TEXT)
def test_what_is_named_in_text_is_there(place: str) -> None:
    module, _, name = place.replace(":", ".").rpartition(".")
    tree = parsed(next(path for _, path in MODULES if dotted(path) == module))
    defined = {getattr(node, "name", None) for node in tree.body}
    defined |= {ast.unparse(target) for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
    assert name in defined


@pytest.mark.parametrize("module", RUN_AS_PROGRAMS)
def test_what_is_run_as_a_program_is_one(module: str) -> None:
    name = f"{module}.__main__" if f"{module}.__main__" in MODULE_NAMES else module
    text = next(path for _, path in MODULES if dotted(path) == name).read_text()
    assert name.endswith("__main__") or '__name__ == "__main__"' in text
    spelled = [name_of(path) for _, path in MODULES if f'"{module}"' in path.read_text()]
    assert spelled or module in ("headrace_gateway", "headrace_rewards"), "nothing runs it: leave it out here"


def test_the_controller_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys, headrace_controller.job_controller\n"
        "print(sorted({'torch', 'vllm', 'fastapi', 'transformers'} & set(sys.modules)))"
    )
    assert run_python(program, tmp_path).strip() == "[]"


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


def imported_modules(tree: ast.Module, ours: set[str]) -> set[str]:
    """The names under which a file has modules of this repository, which are called `ours`."""
    return {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if alias.name.split(".")[-1] in ours
    }


def test_nobody_sets_what_another_module_has() -> None:
    """Parts are handed in (`RolloutPorts`, `LearnerPorts`, `ControllerPorts`); a test patches by `monkeypatch`, which
    undoes it. Hostile user code (`tests/rewards/hostile`) tries, and must not get far."""
    folders = ("core", "rollout", "learner", "rewards", "controller", "gateway", "lab", "simulation", "chaos")
    beside = ("benchmarks", "evidence", "examples", "tests")
    files = [path for folder in (*folders, *beside) for path in sorted((ROOT / folder).rglob("*.py"))]
    ours, found = {path.stem for path in files}, list[str]()
    for path in (path for path in files if path.parent.name != "hostile"):
        tree = parsed(path)
        modules = imported_modules(tree, ours)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
                found.append(f"{name_of(path)}, line {node.lineno}: {ast.unparse(node)}")
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) in modules:
                    found.append(f"{name_of(path)}, line {target.lineno}: {ast.unparse(target)}")
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [name_of(p) for _, p in MODULES if p.name != "__init__.py" and not ast.get_docstring(parsed(p))]
    assert silent == []


# ── tests, benchmarks, evidence, simulation, chaos ───────────────────────────────────────────────────────────────────

WORKSHOP = ("lab", "simulation", "chaos", "benchmarks", "evidence", "tests")
"""What works on the packages, and is in no wheel."""
TOOLS = [path for folder in (*WORKSHOP, "docs", "docker", "requirements") for path in (ROOT / folder).rglob("*.py")]
LOADS_USER_CODE = {"code_loading.py", "verifiers_env_judge.py"}
"""Of the sandbox: whoever wrote a reward finds the files beside it."""
CHANGES = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"}
PATTERNS = {"compile", "findall", "finditer", "fullmatch", "match", "search", "split", "sub", "subn"}


def path_changes(tree: ast.Module) -> list[int]:
    """Lines that change `sys.path`."""
    found = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            targets = [node.func.value]
        found += [t.lineno for t in targets if ast.unparse(t).split("[")[0] == "sys.path"]
    return found


def patterns_over_messages(tree: ast.Module) -> list[int]:
    """Lines that hold a pattern against an event's message."""
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute))
    matches = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in PATTERNS]
    return [c.lineno for c in matches if any(is_message(n) for argument in c.args for n in ast.walk(argument))]


def is_message(node: ast.AST) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "message"
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).split(".")[-1] == "messages"
    return isinstance(node, ast.Attribute) and node.attr == "message" and "event" in ast.unparse(node.value)


def test_what_the_guards_of_the_workshop_look_for_is_found() -> None:
    changes = ("sys.path[:0] = []", "sys.path.insert(0, '')", "sys.path += []", "sys.path = []", "del sys.path[0]")
    assert all(path_changes(ast.parse(change)) == [1] for change in changes)
    assert path_changes(ast.parse("before = list(sys.path)")) == []
    patterns = (
        "READY.match(event['message'])",
        "re.findall('', '\\n'.join(service.messages(job)))",
        "re.match('', event.message)",
    )
    assert all(patterns_over_messages(ast.parse(pattern)) == [1] for pattern in patterns)
    assert patterns_over_messages(ast.parse("re.search('', failure.value.message)")) == []


def test_nothing_changes_where_python_looks_for_modules() -> None:
    """The packages are installed, and the rest is run as modules from the repository's root."""
    product = [path for _, path in MODULES if path.name not in LOADS_USER_CODE]
    everywhere = [*product, *TOOLS, *(ROOT / "examples").rglob("*.py")]
    assert [f"{name_of(p)}:{line}" for p in everywhere for line in path_changes(parsed(p))] == []


def test_imports_stand_at_the_top() -> None:
    everywhere = [*TOOLS, *(path for _, path in MODULES), *(ROOT / "examples").rglob("*.py")]
    excused = re.compile(r"#\s*noqa:.*\bE402")
    assert [name_of(path) for path in everywhere if excused.search(path.read_text())] == []


def test_events_are_read_by_their_data() -> None:
    """Messages are for people, and may be worded anew."""
    assert [f"{name_of(path)}:{line}" for path in TOOLS for line in patterns_over_messages(parsed(path))] == []


def private_names(node: ast.ClassDef) -> set[str]:
    """Methods and attributes of a class that only itself may know."""
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = [n for function in functions for n in ast.walk(function)]
    stored = {
        n.attr
        for n in inner
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and ast.unparse(n.value) == "self"
    }
    names = {function.name for function in functions} | stored
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def classes_in(tree: ast.AST) -> Iterator[tuple[ast.ClassDef, list[str]]]:
    """(class, names of its bases)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node, [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]


def private_overrides(tree: ast.AST, known: dict[str, tuple[set[str], list[str]]]) -> Iterator[str]:
    """Private names of the classes in `known` (name → its private names, its bases) that a subclass has, too."""
    for node, bases in classes_in(tree):
        open_names = list(bases)
        while open_names:
            names, more = known.get(open_names.pop(), (set[str](), list[str]()))
            yield from (f"{node.name}.{name}" for name in sorted(names & private_names(node)))
            open_names += more


def test_no_subclass_outside_the_services_changes_what_is_private_to_its_base() -> None:
    """Parts are handed in from outside, by ports."""
    trees = {path: parsed(path) for path in (*TOOLS, *(path for _, path in MODULES))}
    known = {node.name: (private_names(node), bases) for tree in trees.values() for node, bases in classes_in(tree)}
    planted = ast.parse("class Fake(RayControllerManager):\n    async def _start(self, job_id): ...")
    assert list(private_overrides(planted, known)) == ["Fake._start"]
    assert [f"{name_of(p)}: {found}" for p in TOOLS for found in private_overrides(trees[p], known)] == []


def test_no_service_needs_the_workshop() -> None:
    workshop = {"headrace_lab", "headrace_simulation", "headrace_chaos", "benchmarks", "evidence", "tests"}
    needing = [name_of(p) for _, p in MODULES if {module.split(".")[0] for module, _ in imports(parsed(p))} & workshop]
    assert needing == []


# ── no dead settings ─────────────────────────────────────────────────────────────────────────────────────────────────


def attributes_read(paths: list[Path]) -> set[str]:
    """Every `name` that is read as `something.name`."""
    nodes = (n for path in paths for n in ast.walk(parsed(path)))
    return {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}


def read_through_a_property(model: type[BaseModel], outside: set[str]) -> set[str]:
    """Fields that a method or property of the class, or of a base of it, reads, where that one is used outside."""
    sources = {inspect.getfile(base) for base in model.__mro__ if base.__module__.startswith("headrace_")}
    found = set()
    for node in (node for source in sources for node in ast.walk(parsed(Path(source)))):
        if isinstance(node, ast.FunctionDef) and node.name in outside:
            inner = (n for n in ast.walk(node) if isinstance(n, ast.Attribute))
            found |= {n.attr for n in inner if ast.unparse(n.value) == "self"}
    return found


def unread(model: type[BaseModel], readers: set[str]) -> list[str]:
    outside = attributes_read([path for package, path in MODULES if package in readers])
    return sorted(set(model.model_fields) - outside - read_through_a_property(model, outside))


def test_every_setting_of_a_job_is_read_by_a_service() -> None:
    services = set(PACKAGES) - {"headrace_core"}
    assert unread(Hyperparameters, services) == []


def test_every_setting_of_the_service_is_read_by_the_gateway() -> None:
    assert unread(Settings, {"headrace_gateway", "headrace_controller"}) == []


IMPORT_IN_TEXT = re.compile(r"from (headrace_\w+(?:\.\w+)*) import ([\w, ]+)")


def test_programs_in_text_import_what_is_there() -> None:
    """Tests hand programs to fresh interpreters as text; no linter and no tool that renames looks into them."""
    folders = {name: folder.parent for name, folder in PACKAGES.items()}
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            for module, names in IMPORT_IN_TEXT.findall(node.value):
                where = folders.get(module.split(".")[0])
                if where is None:
                    continue
                place = where.joinpath(*module.split("."))
                source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                assert source.is_file(), f"{name_of(path)}: no module {module}"
                for name in names.replace(" ", "").split(","):
                    inner = place.is_dir() and ((place / f"{name}.py").is_file() or (place / name).is_dir())
                    assert inner or re.search(rf"\b{name}\b", source.read_text()), f"{name_of(path)}: {module}.{name}"
