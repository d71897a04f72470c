"""The form of an upload, read with bounds: its file goes to the disk that keeps it, anything else is small.

    body ─► parts ─┬─► the file ─► memory, from 1 MiB on an unnamed file in the folder of files
                   └─► fields, 16 KiB each

Starlette would write the file to the system's temporary folder, which may be a small one in memory, and has no setting
for it (https://github.com/Kludex/starlette/issues/388); this module may go when it has. An unnamed file is gone with
the process that wrote it, so that there is nothing to sweep; on a file system that has none, the file has for a moment
a name that is swept (`files.sweep`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from fastapi import HTTPException, Request
from starlette.formparsers import MultiPartException, MultiPartParser

from headrace_core.storage.disk_space import require_space

MOST_FIELDS, FIELD_BYTES = 16, 16 * 1024


async def read(request: Request, folder: Path) -> None:
    """From then on the request has its form. Raises `HTTPException` for one that is none, or too large, `DiskFull`, and
    Starlette's `ClientDisconnect`."""
    await asyncio.to_thread(folder.mkdir, 0o700, parents=True, exist_ok=True)
    with require_space(folder):
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            await request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES)
            return
        try:
            request._form = await _Parser(request, folder).parse()
        except MultiPartException as error:
            raise HTTPException(400, error.message) from error


class _Parser(MultiPartParser):
    def __init__(self, request: Request, folder: Path) -> None:
        super().__init__(
            request.headers, request.stream(), max_files=1, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES
        )
        self._folder = folder

    def on_headers_finished(self) -> None:
        """See Starlette's: a part begins, and where it is a file, what takes it is put in the place of Starlette's."""
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
