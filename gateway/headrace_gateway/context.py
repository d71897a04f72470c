"""What every route needs, made once for each app and handed to routes as `Here`. The gateway keeps no state of its own:
everything here is a view of Redis or of the data folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from headrace_core.jobs import JobStore
from headrace_core.ledger import Ledger
from headrace_core.settings import Settings

from .controllers import Controllers
from .files import FileStore
from .graders import Trials
from .models import Models


@dataclass(frozen=True)
class Gateway:
    """The parts behind the routes."""

    settings: Settings
    redis: Redis
    jobs: JobStore
    files: FileStore
    models: Models
    controllers: Controllers
    trials: Trials

    @classmethod
    def over(cls, settings: Settings, redis: Redis, controllers: Controllers) -> Gateway:
        """The parts, all over one Redis."""
        jobs = JobStore(redis)
        files = FileStore(redis, settings.data_dir / "files", settings.max_upload_bytes)
        trials = Trials(settings.reward_rules)
        return cls(settings, redis, jobs, files, Models(settings, jobs), controllers, trials)

    def ledger(self, job_id: str) -> Ledger:
        """The ledger of one job."""
        return Ledger(self.redis, job_id)


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


Here = Annotated[Gateway, Depends(_gateway)]
