"""Redis with a password and TLS: taken from settings, spoken to a real server, shown nowhere."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, ConnectionError

from headrace_core.config.service_settings import Settings
from headrace_core.errors import InvalidRequest, Unavailable
from headrace_core.redis_access.client import connect, ping
from headrace_core.redis_address import masked, redis_address
from headrace_gateway.cli.common import service_settings
from headrace_gateway.service.embedded_redis import RedisServer
from headrace_lab.services.jobs import worker_config

SECRET = "o:pen/ses@me?#&="


@pytest.fixture
async def guarded(redis: Redis, redis_server: RedisServer) -> AsyncIterator[str]:
    """Address of the session's server while it asks for a password, without it."""
    await redis.config_set("requirepass", SECRET)
    yield redis_server.url
    async with connect(redis_address(redis_server.url, SECRET, None)) as client:
        await client.config_set("requirepass", "")


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("redis://ada:***@host:6379/1", "redis://ada:secret@host:6379/1"),
        ("redis://:***@host", "redis://:secret@host"),
        ("unix://:***@/run/redis.sock", "unix://:secret@/run/redis.sock"),
        ("unix:///run/redis.sock?db=1&password=***", "unix:///run/redis.sock?db=1&password=secret"),
        ("Error connecting to rediss://:***@host, and redis://b:***@c", "Error connecting to rediss://:secret@host, and redis://b:secret@c"),
        ("redis://host:6379/0 at http://a@b", "redis://host:6379/0 at http://a@b"),
    ],
)  # fmt: skip
def test_addresses_are_shown_without_their_passwords(shown: str, text: str) -> None:
    assert masked(text) == shown


def test_every_password_can_be_put_into_an_address_and_is_masked_there(tmp_path: Path) -> None:
    address = redis_address("redis://ada@host:6379/1", SECRET, None)
    assert masked(address) == "redis://ada:***@host:6379/1"
    assert redis_address("redis://host", None, None) == "redis://host"
    with pytest.raises(InvalidRequest, match="given twice"):
        redis_address("redis://:other@host", SECRET, None)
    with pytest.raises(InvalidRequest, match="rediss://"):
        redis_address("redis://host", None, tmp_path / "ca.pem")


def test_settings_take_it_from_a_file_and_show_it_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    settings = Settings(redis_url="redis://host", redis_password_file=file)
    assert settings.redis_address == f"redis://:{quote(SECRET, safe='')}@host"
    for one in (settings, Settings(redis_url=f"redis://:{quote(SECRET, safe='')}@host", redis_password=SECRET)):
        assert SECRET not in repr(one)
        assert quote(SECRET, safe="") not in repr(one)
    with pytest.raises(ValidationError, match="a password in it percent-encoded") as error:
        Settings(redis_url=f"redis://:{SECRET}@host")
    assert "pen" not in str(error.value).replace("percent", "")
    config = worker_config(redis_url=settings.redis_address)
    assert quote(SECRET, safe="") not in repr(config)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        _ = Settings(redis_url="redis://host", redis_password_file=tmp_path / "none").redis_address


def test_a_password_in_an_option_is_refused_because_ps_shows_it() -> None:
    with pytest.raises(InvalidRequest, match="HEADRACE_REDIS_PASSWORD_FILE") as error:
        service_settings(redis_url="redis://:secret@host")
    assert "secret" not in error.value.message
    assert service_settings(redis_url="redis://host").redis_address == "redis://host"


async def test_the_password_opens_the_server_and_a_wrong_one_is_not_tried_for_minutes(guarded: str) -> None:
    async with connect(redis_address(guarded, SECRET, None)) as client:
        await ping(client)
    for url in (guarded, redis_address(guarded, "wrong", None)):
        async with asyncio.timeout(5):
            async with connect(url, wait=60) as client:
                with pytest.raises((AuthenticationError, Unavailable)) as error:
                    await ping(client)
        assert "wrong" not in str(error.value)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cert.pem` and `key.pem` of localhost; the certificate is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    made = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-days", "2", "-nodes"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", *made, *name],
        check=True,
        capture_output=True,
    )
    return folder


@asynccontextmanager
async def behind_tls(socket: Path, certificates: Path) -> AsyncIterator[int]:
    """The port of a TLS end in front of a Redis: the wheel's own server was built without TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(1 << 16):
            writer.write(part)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(str(socket))
        await asyncio.gather(passed(reader, up_writer), passed(up_reader, writer), return_exceptions=True)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


async def test_tls_with_an_authority_of_ones_own_and_a_password(
    guarded: str, redis_server: RedisServer, certificates: Path
) -> None:
    async with behind_tls(redis_server.socket, certificates) as port:
        url = f"rediss://localhost:{port}"
        settings = Settings(redis_url=url, redis_password=SECRET, redis_ca_file=certificates / "cert.pem")
        assert settings.redis_address is not None
        async with connect(settings.redis_address) as client:
            await client.set("a", "b")
            assert await client.get("a") == b"b"
        async with asyncio.timeout(5):  # a server that is not believed is not waited for
            async with connect(redis_address(url, SECRET, None), wait=60) as client:
                with pytest.raises(ConnectionError, match="certificate"):
                    await client.get("a")
