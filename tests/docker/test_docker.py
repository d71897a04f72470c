"""docker/ without an engine: the compose file, the Dockerfile, and the gateway image's install steps replayed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace_lab.paths import ROOT, load_module

DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
ROLES = {"gateway", "learner-cpu", "rollout-cpu", "learner-gpu", "rollout-gpu"}
PINNED_TAG = re.compile(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*")


replay = load_module(DOCKER / "replay.py")
STAGES = replay.read((DOCKER / "Dockerfile").read_text())


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """docker/.env as init.sh makes it, made elsewhere."""
    for name in ("init.sh", ".env.example"):
        shutil.copy2(DOCKER / name, tmp_path)
    subprocess.run(["sh", str(tmp_path / "init.sh")], check=True, capture_output=True, timeout=30)
    return tmp_path / ".env"


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def compose_command() -> list[str]:
    """Docker's plug-in, or the older program; the test that needs one is left out where there is neither."""
    if shutil.which("docker"):
        plug_in = subprocess.run(["docker", "compose", "version"], check=False, capture_output=True, timeout=60)
        if plug_in.returncode == 0:
            return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("neither `docker compose` nor `docker-compose` is on this machine")


def config(env_file: Path, *profiles: str) -> dict[str, Any]:
    chosen = [word for profile in profiles for word in ("--profile", profile)]
    command = [*compose_command(), "--env-file", str(env_file), "--file", str(COMPOSE), *chosen, "config"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def test_compose_takes_the_file_and_fills_in_the_secrets(env_file: Path) -> None:
    found = config(env_file, "cpu", "gpu")["services"]
    assert set(found) == {"redis", "ray-head", "gateway", "learner", "rollout", "learner-gpu", "rollout-gpu"}
    nodes = {name: service["environment"] for name, service in found.items() if name != "redis"}
    assert len({environment["RAY_AUTH_TOKEN"] for environment in nodes.values()}) == 1
    password = found["redis"]["environment"]["REDIS_PASSWORD"]
    assert len(password) >= 32
    assert f":{password}@redis:" in nodes["gateway"]["HEADRACE_REDIS_URL"]


def test_compose_refuses_to_start_without_secrets() -> None:
    command = [*compose_command(), "--env-file", str(DOCKER / ".env.example"), "--file", str(COMPOSE), "config"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "docker/init.sh" in done.stderr


def test_init_keeps_an_existing_file_and_its_secrets_are_its_owners(env_file: Path) -> None:
    before = env_file.read_text()
    assert env_file.stat().st_mode & 0o077 == 0
    subprocess.run(["sh", str(env_file.parent / "init.sh")], check=True, capture_output=True, timeout=30)
    assert env_file.read_text() == before


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    offered = set(re.findall(r"^(\w+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    assert used == {name for name in offered if not name.startswith("COMPOSE_")}


def test_the_gateway_alone_is_published_and_on_loopback(services: dict[str, dict[str, Any]]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(published) == ["gateway"]
    assert all(port.startswith("127.0.0.1:") for port in published["gateway"])
    assert not any("network_mode" in service or service.get("privileged") for service in services.values())


def test_images_are_pinned_and_their_targets_exist(services: dict[str, dict[str, Any]]) -> None:
    assert all(PINNED_TAG.fullmatch(service["image"]) for service in services.values())
    bases = {stage.parent for stage in STAGES.values()} - set(STAGES)
    assert all(PINNED_TAG.fullmatch(base) for base in bases)
    built = {service["build"]["target"] for service in services.values() if "build" in service}
    assert built == ROLES
    assert built <= set(STAGES)


def test_services_check_their_health_restart_and_share_what_jobs_name(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        # Images have a check of their own, of their own role.
        assert ("healthcheck" in service) == (name in ("redis", "ray-head")), name
        assert service["restart"] == "unless-stopped", name
        if name not in ("redis", "ray-head"):
            paths = {volume.split(":")[1] for volume in _volumes(service["volumes"])}
            assert {"/data", "/weights", "/shared"} <= paths, name


def _volumes(volumes: list[str]) -> list[str]:
    """Variables with defaults hold colons: away with them."""
    return [re.sub(r"\$\{[^}]*\}", "variable", volume) for volume in volumes]


@pytest.mark.parametrize("target", sorted(ROLES))
def test_each_image_has_a_user_a_health_check_a_role_and_an_inspection(target: str) -> None:
    steps = [step for stage in replay.chain(STAGES, target) for step in stage.instructions]
    assert [step.text for step in steps if step.name == "USER"] == ["headrace"]
    assert any(step.name == "HEALTHCHECK" for step in steps)
    role = json.loads(next(step.text for step in reversed(steps) if step.name == "CMD"))
    assert role == [target.partition("-")[0]]
    assert [step for step in steps if step.name == "RUN"][-1].text.startswith("python docker/inspect_image.py")


@pytest.mark.parametrize("target", sorted(ROLES))
def test_every_package_of_an_image_is_pinned(target: str) -> None:
    for step in (step for stage in replay.chain(STAGES, target) for step in stage.instructions):
        if step.name == "RUN" and "pip install" in step.text and "--editable" not in step.text:
            lists = re.findall(r"--(?:constraint|requirement) (\S+)", step.text)
            pins = {name for path in lists for name, pinned in _packages(ROOT / path) if pinned}
            asked = {
                name for path in re.findall(r"--requirement (\S+)", step.text) for name, _ in _packages(ROOT / path)
            }
            assert asked <= pins, step.text
            assert "==" in step.text or asked, step.text


def _packages(path: Path) -> list[tuple[str, bool]]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [(re.split(r"[\[=]", line)[0], "==" in line) for line in lines if line]


@pytest.mark.parametrize(
    ("role", "token", "code", "said"), [("head", "", 2, "secret of the cluster"), ("cook", "x", 2, "no role cook")]
)
def test_a_node_without_its_secret_or_with_an_unknown_role_does_not_start(
    role: str, token: str, code: int, said: str
) -> None:
    environment = {"PATH": "/usr/bin:/bin", "RAY_AUTH_TOKEN": token}
    command = ["sh", str(DOCKER / "start.sh"), role]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=30)
    assert done.returncode == code
    assert said in done.stderr


@pytest.mark.parametrize("text", ["RUN pip\n", "FROM python:3.11.13\n"])
def test_a_dockerfile_that_the_replay_cannot_follow_is_refused(text: str) -> None:
    with pytest.raises(replay.Unreadable):
        replay.read(text)


def test_what_the_context_does_not_hold_cannot_be_copied(tmp_path: Path) -> None:
    with pytest.raises(replay.Unreadable, match="dockerignore"):
        replay.copy("tests tests", tmp_path)


@pytest.mark.timeout(600)
def test_the_gateway_image_installs_in_an_empty_environment_and_holds_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCKER / "replay.py"), "gateway"], check=False, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without torch, vllm, transformers" in done.stdout
