"""Settings of the service, from `HEADRACE_*` environment variables or `headrace serve` options. A job's own settings
are in `hyperparameters`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from .reward_rules import RewardRules, SandboxLevel


class Settings(BaseSettings):
    """With none set, everything runs on this machine: private Redis, local Ray, gateway on loopback."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="forbid", frozen=True)

    data_dir: Path = Field(Path("headrace-data"), description="Files, checkpoints, trained models, embedded Redis.")
    host: str = Field("127.0.0.1", description="Address the gateway listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the gateway listens on; 0 takes a free one.")
    redis_url: str | None = Field(
        None, description="A Redis of your own (redis:// or unix://); unset: an embedded one."
    )
    ray_address: str | None = Field(None, description="A Ray cluster of your own; unset: a local one.")
    weights_dir: Path | None = Field(
        None, description="Where policy versions are handed over; must be shared by all workers. Unset: shared memory."
    )
    models_dir: Path | None = Field(None, description="Folder whose subfolders are offered as models by name.")
    lease_seconds: float = Field(60.0, gt=0, description="A group not renewed for so long is issued again.")
    start_timeout: float = Field(300.0, gt=0, description="Seconds a worker may take to load its model.")
    stall_timeout: float = Field(600.0, gt=0, description="Seconds without progress after which a wait is an error.")
    max_restarts: int = Field(3, ge=0, description="Restarts of one worker before its job fails.")
    max_upload_bytes: int = Field(512 * 1024 * 1024, gt=0, description="Largest file that may be uploaded.")
    reward_sandbox: SandboxLevel = Field(
        "limits", description="Reward code of users is refused where the machine holds it less well than this."
    )
    reward_hosts: tuple[str, ...] = Field(
        (), description="Hosts (host or host:port, a JSON list) that HTTP rewards may be asked at."
    )
    judge_url: str | None = Field(
        None, description="Server in OpenAI's protocol that model graders ask, with /v1; unset: they are refused."
    )
    judge_key: SecretStr | None = Field(None, description="Bearer key of that server.")

    @property
    def reward_rules(self) -> RewardRules:
        """What rewards may do, for the processes that run them."""
        return RewardRules(
            sandbox=self.reward_sandbox,
            hidden=(str(self.data_dir.absolute()),),
            hosts=self.reward_hosts,
            judge_url=self.judge_url,
            judge_key=None if self.judge_key is None else self.judge_key.get_secret_value(),
        )
