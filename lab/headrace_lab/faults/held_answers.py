"""A proxy before Redis that can delay answers, so that a test can cancel a caller just after Redis has acted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class HeldAnswers:
    """The proxy. Everything passes at once, except the answers to commands that `hold` selects."""

    def __init__(self, socket: Path, folder: Path) -> None:
        self._socket = socket
        self._path = folder / "held.sock"
        self._marker: bytes | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._answered = asyncio.Event()

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"unix://{self._path}"

    def hold(self, marker: bytes) -> None:
        """Delay the answer to each command sent from now on that contains the bytes `marker`, and everything that
        follows it on its connection."""
        self._marker = marker
        self._open.clear()
        self._answered.clear()

    async def answered(self) -> None:
        """Returns when an answer is being delayed, so that Redis has executed the command."""
        async with asyncio.timeout(20):
            await self._answered.wait()

    def let_go(self) -> None:
        """Deliver the delayed answers, and delay no more."""
        self._marker = None
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(str(self._socket))
        marked = asyncio.Event()
        back = asyncio.create_task(self._answers(redis_reader, writer, marked))
        try:
            while data := await reader.read(65536):
                if self._marker is not None and self._marker in data:
                    marked.set()
                redis_writer.write(data)
        finally:
            redis_writer.close()
            await back

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marked: asyncio.Event) -> None:
        try:
            while data := await reader.read(65536):
                if marked.is_set():
                    self._answered.set()
                    await self._open.wait()
                    marked.clear()
                writer.write(data)
        finally:
            writer.close()


@asynccontextmanager
async def held_answers(url: str, folder: Path) -> AsyncIterator[HeldAnswers]:
    """A proxy before the Redis at the unix socket `url`; its own socket is in `folder`."""
    held = HeldAnswers(Path(url.removeprefix("unix://").partition("?")[0]), folder)
    server = await asyncio.start_unix_server(held._serve, str(held._path))
    try:
        yield held
    finally:
        held.let_go()
        server.close()
