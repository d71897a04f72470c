"""A real gateway that asks for keys, and clients with and without them. Fixtures: import them into a test module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from redis.asyncio import Redis

from headrace_core.config.service_settings import Settings
from headrace_gateway.app import create_app
from headrace_gateway.auth.api_keys import KeyStore
from headrace_gateway.limited_processes.forked_process import ForkServer
from headrace_gateway.service.embedded_redis import RedisServer

from .conftest import MAX_UPLOAD_BYTES, Controllers, serving


@dataclass
class Keyed:
    """A running gateway, its app, and one key of each kind."""

    url: str
    app: FastAPI
    redis: Redis
    keys: KeyStore
    alice: str
    bob: str
    admin: str

    def http(self, key: str | None = None, **options: Any) -> httpx.AsyncClient:
        """A client that shows `key`."""
        client = httpx.AsyncClient(base_url=self.url, **{"timeout": 60, **options})
        if key is not None:
            client.headers["authorization"] = f"Bearer {key}"
        return client

    def openai(self, key: str) -> AsyncOpenAI:
        """OpenAI's client with `key`; it repeats nothing."""
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


@asynccontextmanager
async def gateway(
    settings: Settings, redis: Redis, redis_url: str, fork_server: ForkServer | None = None
) -> AsyncIterator[Keyed]:
    """Served by uvicorn, as `headrace serve` does."""
    app = create_app(settings, redis_url, Controllers(), fork_server=fork_server)
    keys = KeyStore(redis)
    made = [(await keys.create(name, scope))[1] for name, scope in MEMBERS]
    async with serving(app, settings.trusted_proxies) as (url, _):
        yield Keyed(url, app, redis, keys, *made)


MEMBERS: list[Any] = [("alice", "user"), ("bob", "user"), ("root", "admin")]


@pytest.fixture
async def keyed(
    redis: Redis, redis_server: RedisServer, shared_forks: ForkServer, tmp_path: Path
) -> AsyncIterator[Keyed]:
    settings = Settings(data_dir=tmp_path, max_upload_bytes=MAX_UPLOAD_BYTES, require_keys="on")
    async with gateway(settings, redis, redis_server.url, shared_forks) as served:
        yield served
