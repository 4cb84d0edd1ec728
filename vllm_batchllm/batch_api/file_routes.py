# SPDX-License-Identifier: Apache-2.0
"""``/v1/files``: upload, list, show, read, delete."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from sqlalchemy import Connection

from vllm_batchllm.batch_api import schema
from vllm_batchllm.batch_api.api_errors import APIError, answering_errors, not_found
from vllm_batchllm.batch_api.contents import Part
from vllm_batchllm.batch_api.records import Row, add, find, forget_file, unfinished_on
from vllm_batchllm.batch_api.routes import Store, listed_page, owner_of
from vllm_batchllm.batch_api.tables import FILES
from vllm_batchllm.batch_api.upload import Upload, not_stored, receive, too_large
from vllm_batchllm.messages import clip

PURPOSE = "batch"
MAX_PAGE = 10_000
MAX_NAME = 255
FORM_BYTES = 1 << 20
"""What a form may have beside its content, bytes."""


class FileRoutes:
    """The routes of files over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add_to(self, router: APIRouter) -> None:
        routes = (
            ("POST", "/v1/files", self.upload),
            ("GET", "/v1/files", self.list),
            ("GET", "/v1/files/{file_id}", self.show),
            ("GET", "/v1/files/{file_id}/content", self.read),
            ("DELETE", "/v1/files/{file_id}", self.delete),
        )
        for method, path, handler in routes:
            router.add_api_route(
                path, answering_errors(handler), methods=[method], response_model=None
            )

    async def upload(self, request: Request) -> Response:
        """Store a file; it is on disk when the answer comes."""
        max_bytes = self._store.options.max_file_bytes
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > max_bytes + FORM_BYTES:
            raise too_large(max_bytes)
        try:
            row = await self._store_upload(request, max_bytes)
        except OSError as error:
            raise not_stored(error) from None
        return JSONResponse(schema.file_object(row))

    async def _store_upload(self, request: Request, max_bytes: int) -> Row:
        contents, part = self._store.contents, await asyncio.to_thread(self._store.contents.begin)
        kind = request.headers.get("content-type", "")
        try:
            upload = await receive(request.stream(), kind, part, max_bytes)
            row = _row_of(upload, part, owner_of(request))
            await asyncio.to_thread(contents.keep, part, row["id"])
        except BaseException:  # the client has gone, too
            part.abandon()
            raise
        try:
            await self._store.database.ado(lambda connection: add(connection, FILES, row))
        except BaseException:
            contents.remove(row["id"])
            raise
        return row

    async def list(self, request: Request) -> Response:
        """A page of the owner's files, the newest first."""
        rows, has_more = await listed_page(
            self._store, request, FILES, most=MAX_PAGE, default=MAX_PAGE, kind="file"
        )
        return JSONResponse(schema.page([schema.file_object(row) for row in rows], has_more))

    async def show(self, request: Request) -> Response:
        """One file."""
        return JSONResponse(schema.file_object(await self._find(request)))

    async def read(self, request: Request) -> Response:
        """The content of a file."""
        row = await self._find(request)
        path = self._store.contents.file(row["id"])
        if not path.is_file():
            raise APIError(
                410, f"the content of {row['id']} is gone from the server's disk", code="gone"
            )
        return FileResponse(path, media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        """Forget a file and its content, unless an unfinished batch reads it."""
        name, owner = request.path_params["file_id"], owner_of(request)

        def forget(connection: Connection) -> None:
            if find(connection, FILES, name, owner, lock=True) is None:
                raise not_found("file", name)
            batch = unfinished_on(connection, name)
            if batch is not None:
                raise APIError(
                    409, f"{name} is read by {batch}; cancel that first, or wait", code="in_use"
                )
            forget_file(connection, name)

        await self._store.database.ado(forget)
        await asyncio.to_thread(self._store.contents.remove, name)
        return JSONResponse({"id": name, "object": "file", "deleted": True})

    async def _find(self, request: Request) -> Row:
        name, owner = request.path_params["file_id"], owner_of(request)
        row = await self._store.database.ado(
            lambda connection: find(connection, FILES, name, owner)
        )
        if row is None:
            raise not_found("file", name)
        return row


def _row_of(upload: Upload, part: Part, owner: str) -> Row:
    purpose = upload.fields.get("purpose")
    if purpose != PURPOSE:
        raise APIError(
            400,
            f"purpose = {clip(purpose)} is not served here; upload with purpose {PURPOSE!r}",
            param="purpose",
        )
    stray = sorted(set(upload.fields) - {"purpose"})
    if stray:
        raise APIError(
            400, f"{clip(stray[0])} is not supported by this server", param=stray[0][:64]
        )
    return {
        "id": schema.new_file_id(),
        "owner": owner,
        "filename": (upload.filename or "file")[-MAX_NAME:],
        "purpose": PURPOSE,
        "bytes": part.num_bytes,
        "created_at": int(time.time()),
    }
