"""What every route needs, created once per app and passed to routes as `Context`. The gateway keeps no state of its
own: everything here is a view of Redis or of the data folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from headrace_controller.manager import ControllerManager
from headrace_core.config.service_settings import Settings
from headrace_core.jobs.job_store import JobStore
from headrace_core.ledger.ledger import Ledger

from .auth.api_keys import KeyStore
from .auth.audit_log import Audit
from .chat.chat_pool import ChatPool
from .events.job_streams import JobStreams
from .files.file_store import FileStore
from .files.task_files import task_slots
from .grading.grader_checks import GraderTrials
from .limited_processes.forked_process import ForkServer
from .limited_processes.process_slots import ProcessSlots
from .models.catalog import Models
from .models.prompt_process import ENVIRONMENT, PromptChecks
from .principal import LOCAL, Caller, Principal

PRELOADED = ("headrace_rewards.grader_check:prepare", "headrace_gateway.models.prompt_tokens")
"""Modules that the checks of a submission need, imported once by the process that forks the checks."""


@dataclass(frozen=True)
class GatewayContext:
    """The services behind the routes, restricted to the caller: for one with scope `user`, `jobs`, `files` and `models`
    contain only the caller's own."""

    settings: Settings
    redis: Redis
    jobs: JobStore
    files: FileStore
    models: Models
    controllers: ControllerManager
    chats: ChatPool
    trials: GraderTrials
    prompts: PromptChecks
    task_slots: ProcessSlots
    hub: JobStreams
    keys: KeyStore
    audit: Audit
    fork_server: ForkServer | None = None
    """Forks the processes of `trials` and `prompts`; None: each is a new Python process."""
    principal: Principal = LOCAL
    """The caller, who owns what the request creates."""

    @classmethod
    def over(
        cls,
        settings: Settings,
        redis: Redis,
        controllers: ControllerManager,
        chats: ChatPool,
        fork_server: ForkServer | None = None,
    ) -> GatewayContext:
        """The services over one Redis, for a caller who may see everything. `fork_server`: by default a new one, if the
        settings want one."""
        jobs = JobStore(redis)
        files = FileStore(redis, settings.data_dir / "files", settings.max_upload_bytes)
        forks = (fork_server or ForkServer(PRELOADED, ENVIRONMENT)) if settings.fork_server else None
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
            GraderTrials(rules) if forks is None else GraderTrials(rules, forks.run),
            PromptChecks() if forks is None else PromptChecks(forks.run),
            task_slots(),
            JobStreams(redis),
            keys,
            audit,
            forks,
        )

    def seen_by(self, principal: Principal) -> GatewayContext:
        """The same services, restricted to what `principal` may see."""
        files = self.files.seen_by(principal)
        if principal.scope == "admin":
            return replace(self, principal=principal, files=files)
        jobs = JobStore(self.redis, principal.name)
        models = self.models.of(jobs)
        return replace(self, principal=principal, files=files, jobs=jobs, models=models)

    def ledger(self, job_id: str) -> Ledger:
        """The ledger of one job."""
        return Ledger(self.redis, job_id)


async def _gateway(request: Request, principal: Caller) -> GatewayContext:
    gateway: GatewayContext = request.app.state.gateway
    return gateway if principal is LOCAL else gateway.seen_by(principal)


Context = Annotated[GatewayContext, Depends(_gateway)]
