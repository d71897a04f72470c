"""What every route needs, made once for each app and handed to routes as `Here`. The gateway keeps no state of its own:
everything here is a view of Redis or of the data folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from headrace_core.jobs import JobStore
from headrace_core.ledger import Ledger
from headrace_core.settings import Settings

from .api_keys import KeyStore
from .audit import Audit
from .chats import Chats
from .controllers import Controllers
from .files import FileStore
from .forked import ForkServer
from .graders import Trials
from .hub import Hub
from .identity import LOCAL, By, Principal
from .models import Models
from .places import Places
from .prompt_process import ENVIRONMENT, PromptChecks
from .task_files import task_places

PRELOADED = ("headrace_rewards.check:prepare", "headrace_gateway.prompts")
"""What the checks of a submission import."""


@dataclass(frozen=True)
class Gateway:
    """The parts behind the routes, as the caller sees them: for a caller of scope `user`, `jobs`, `files` and `models`
    hold only the caller's own."""

    settings: Settings
    redis: Redis
    jobs: JobStore
    files: FileStore
    models: Models
    controllers: Controllers
    chats: Chats
    trials: Trials
    prompts: PromptChecks
    task_places: Places
    hub: Hub
    keys: KeyStore
    audit: Audit
    fork_server: ForkServer | None = None
    """Whence the processes of `trials` and `prompts` come; None: each is started anew."""
    principal: Principal = LOCAL
    """In whose name things are made."""

    @classmethod
    def over(cls, settings: Settings, redis: Redis, controllers: Controllers, chats: Chats) -> Gateway:
        """The parts, all over one Redis."""
        jobs = JobStore(redis)
        files = FileStore(redis, settings.data_dir / "files", settings.max_upload_bytes)
        forks = ForkServer(PRELOADED, ENVIRONMENT) if settings.fork_server else None
        rules = settings.reward_rules
        keys, audit = KeyStore(redis), Audit(redis, settings.audit_entries)
        return cls(
            settings,
            redis,
            jobs,
            files,
            Models(settings, jobs),
            controllers,
            chats,
            Trials(rules) if forks is None else Trials(rules, forks.run),
            PromptChecks() if forks is None else PromptChecks(forks.run),
            task_places(),
            Hub(redis),
            keys,
            audit,
            forks,
        )

    def seen_by(self, principal: Principal) -> Gateway:
        """The same parts, in the hands of another."""
        files = self.files.seen_by(principal)
        if principal.scope == "admin":
            return replace(self, principal=principal, files=files)
        jobs = JobStore(self.redis, principal.name)
        models = self.models.of(jobs)
        return replace(self, principal=principal, files=files, jobs=jobs, models=models)

    def ledger(self, job_id: str) -> Ledger:
        """The ledger of one job."""
        return Ledger(self.redis, job_id)


async def _gateway(request: Request, principal: By) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway if principal is LOCAL else gateway.seen_by(principal)


Here = Annotated[Gateway, Depends(_gateway)]
