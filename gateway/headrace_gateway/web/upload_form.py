"""Parses an upload's form with limits, and writes its file to the disk that will store it.

    body ─► parts ─┬─► the file ─► memory; from 1 MiB on, an unnamed file in the folder of uploaded files
                   └─► fields, 16 KiB each

Starlette would write the file to the system's temporary folder, which may be a small one in memory, and has no setting
for it (https://github.com/Kludex/starlette/issues/388); remove this module when it has. An unnamed file disappears with
the process that wrote it, so that nothing is left to clean up. On a file system without unnamed files, the file briefly
has a name that `files.sweep` removes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from fastapi import HTTPException, Request
from starlette.formparsers import MultiPartException, MultiPartParser

from headrace_core.storage.disk_space import require_space

MAX_FIELDS, FIELD_BYTES = 16, 16 * 1024


async def read(request: Request, folder: Path) -> None:
    """Parse the form, and store it in the request. Raises `HTTPException` for an invalid or too large form, `DiskFull`,
    and Starlette's `ClientDisconnect`."""
    await asyncio.to_thread(folder.mkdir, 0o700, parents=True, exist_ok=True)
    with require_space(folder):
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=FIELD_BYTES)
            return
        try:
            request._form = await _Parser(request, folder).parse()
        except MultiPartException as error:
            raise HTTPException(400, error.message) from error


class _Parser(MultiPartParser):
    def __init__(self, request: Request, folder: Path) -> None:
        super().__init__(
            request.headers, request.stream(), max_files=1, max_fields=MAX_FIELDS, max_part_size=FIELD_BYTES
        )
        self._folder = folder

    def on_headers_finished(self) -> None:
        """Overrides Starlette's hook for the begin of a part: replaces Starlette's temporary file by one in our
        folder."""
        super().on_headers_finished()
        upload = self._current_part.file
        if upload is None:
            return
        spooled = SpooledTemporaryFile(  # noqa: SIM115 (closed with the request)
            self.spool_max_size, dir=str(self._folder), prefix=".upload-", suffix=".partial"
        )
        upload.file.close()
        upload.file = cast("BinaryIO", spooled)
        self._files_to_close_on_error[-1] = spooled
