# SPDX-License-Identifier: Apache-2.0
"""``/v1/batches``: create, list, show, cancel."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import Connection

from vllm_batchllm.batch_api import schema
from vllm_batchllm.batch_api.api_errors import APIError, answering_errors, checked, not_found
from vllm_batchllm.batch_api.records import Row, add, find, move, num_unfinished
from vllm_batchllm.batch_api.routes import Store, json_object, listed_page, owner_of
from vllm_batchllm.batch_api.tables import BATCHES, FILES
from vllm_batchllm.batch_api.work import ENDPOINTS
from vllm_batchllm.messages import clip

MAX_PAGE, PAGE = 100, 20
FIELDS = {"input_file_id", "endpoint", "completion_window", "metadata"}


class BatchRoutes:
    """The routes of batches over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add_to(self, router: APIRouter) -> None:
        routes = (
            ("POST", "/v1/batches", self.create),
            ("GET", "/v1/batches", self.list),
            ("GET", "/v1/batches/{batch_id}", self.show),
            ("POST", "/v1/batches/{batch_id}/cancel", self.cancel),
        )
        for method, path, handler in routes:
            router.add_api_route(
                path, answering_errors(handler), methods=[method], response_model=None
            )

    async def create(self, request: Request) -> Response:
        """Queue a batch; once the answer has come, it outlives the server."""
        row = _row_of(await json_object(request), owner_of(request))
        max_queued = self._store.options.max_queued

        def insert(connection: Connection) -> Row:
            file = find(connection, FILES, row["input_file_id"], row["owner"], lock=True)
            if file is None:
                raise not_found("input_file", row["input_file_id"])
            if file["purpose"] != "batch":
                raise APIError(
                    400,
                    f"{file['id']} has purpose {file['purpose']!r}; a batch reads one of 'batch'",
                    param="input_file_id",
                )
            if num_unfinished(connection, row["owner"]) >= max_queued:
                raise _too_many(max_queued)
            add(connection, BATCHES, row)
            return _there(find(connection, BATCHES, row["id"]))

        return JSONResponse(schema.batch_object(await self._store.database.ado(insert)))

    async def list(self, request: Request) -> Response:
        """A page of the owner's batches, the newest first."""
        rows, has_more = await listed_page(
            self._store, request, BATCHES, most=MAX_PAGE, default=PAGE, kind="batch"
        )
        return JSONResponse(schema.page([schema.batch_object(row) for row in rows], has_more))

    async def show(self, request: Request) -> Response:
        """One batch, as it is now."""
        name, owner = request.path_params["batch_id"], owner_of(request)
        row = await self._store.database.ado(
            lambda connection: find(connection, BATCHES, name, owner)
        )
        if row is None:
            raise not_found("batch", name)
        return JSONResponse(schema.batch_object(row))

    async def cancel(self, request: Request) -> Response:
        """Cancel a batch that runs or waits; what is answered is kept."""
        name, owner = request.path_params["batch_id"], owner_of(request)

        def stop(connection: Connection) -> Row:
            row = find(connection, BATCHES, name, owner)
            if row is None:
                raise not_found("batch", name)
            move(connection, name, "cancelling", time.time())
            return _there(find(connection, BATCHES, name))

        row = await self._store.database.ado(stop)
        if row["status"] not in ("cancelling", "cancelled"):
            raise APIError(
                409,
                f"{name} is {row['status']} and cannot be cancelled any more",
                code="not_running",
            )
        return JSONResponse(schema.batch_object(row))


def _row_of(body: dict[str, Any], owner: str) -> Row:
    stray = sorted(set(body) - FIELDS)
    if stray:
        raise APIError(
            400, f"{clip(stray[0])} is not supported by this server", param=stray[0][:64]
        )
    endpoint = checked(body.get("endpoint"), str, "endpoint")
    if endpoint not in ENDPOINTS:
        known = ", ".join(ENDPOINTS)
        raise APIError(
            400, f"endpoint = {clip(endpoint)} is not served; known: {known}", param="endpoint"
        )
    window = checked(body.get("completion_window"), str, "completion_window")
    seconds = schema.window_seconds(window)
    if seconds is None:
        raise APIError(
            400,
            f"completion_window = {clip(window)} is not allowed; give one such as '24h', '90m' or '7d', "
            "of 30 days at most",
            param="completion_window",
        )
    now = int(time.time())
    return {
        "id": schema.new_batch_id(),
        "owner": owner,
        "status": "validating",
        "endpoint": endpoint,
        "input_file_id": checked(body.get("input_file_id"), str, "input_file_id")[:64],
        "completion_window": window,
        "metadata": _metadata(body.get("metadata")),
        "created_at": now,
        "expires_at": now + seconds,
        "answers_id": schema.new_file_id(),
        "failures_id": schema.new_file_id(),
    }


def _metadata(metadata: Any) -> str | None:
    if metadata is None:
        return None
    problem = schema.metadata_problem(checked(metadata, dict, "metadata"))
    if problem is not None:
        raise APIError(400, problem, param="metadata")
    return json.dumps(metadata)


def _too_many(max_queued: int) -> APIError:
    return APIError(
        429,
        f"{max_queued} batches of yours are not finished, the most that this server takes "
        "(--batch-max-queued); wait, or cancel one",
        code="too_many_batches",
    )


def _there(row: Row | None) -> Row:
    if row is None:
        raise APIError(404, "the batch is gone", code="not_found")
    return row
