# SPDX-License-Identifier: Apache-2.0
"""What every route of the Batch API shares, and the router of all of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Connection, Table

from vllm_batchllm.batch_api.api_errors import APIError, checked, not_found, whole_number
from vllm_batchllm.batch_api.contents import Contents
from vllm_batchllm.batch_api.database import Database
from vllm_batchllm.batch_api.options import BatchOptions
from vllm_batchllm.batch_api.records import Row, find, listed
from vllm_batchllm.messages import clip

MAX_BODY = 1 << 20
"""Largest body of a request that is no upload, bytes."""


@dataclass(slots=True)
class Store:
    """Where the routes look: made when the server starts, filled when its engine is there."""

    options: BatchOptions
    database: Database
    contents: Contents


def owner_of(request: Request) -> str:
    """Whose files and batches a request may see: a hash of the API key that it presents.

    Requests without a key share an owner.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        return ""
    return hashlib.sha256(f"vllm-batchllm:{key}".encode()).hexdigest()


async def json_object(request: Request) -> dict[str, Any]:
    """The body of a request.

    Raises:
        APIError: it is no JSON object, or too large.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise APIError(413, f"the body is larger than {MAX_BODY} bytes")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the body is no JSON: {str(error)[:200]}") from None
    return dict(checked(found, dict, "body"))


async def listed_page(
    store: Store, request: Request, table: Table, *, most: int, default: int, kind: str
) -> tuple[list[Row], bool]:
    """Rows of the page that the query of a request asks for, and whether there are more.

    Raises:
        APIError: a parameter that is not allowed.
    """
    query, owner = request.query_params, owner_of(request)
    limit = whole_number(query.get("limit"), "limit", default, most)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise APIError(400, f"order = {clip(order)} is neither asc nor desc", param="order")

    def look(connection: Connection) -> tuple[list[Row], bool]:
        after = query.get("after")
        start = None
        if after is not None:
            row = find(connection, table, after, owner)
            if row is None:
                raise not_found(kind, after)
            start = row["seq"]
        purpose = query.get("purpose") if kind == "file" else None
        return listed(
            connection,
            table,
            owner,
            limit=limit,
            after=start,
            ascending=order == "asc",
            purpose=purpose,
        )

    return await store.database.ado(look)


def router_of(store: Store) -> APIRouter:
    """All routes."""
    from vllm_batchllm.batch_api.batch_routes import BatchRoutes
    from vllm_batchllm.batch_api.file_routes import FileRoutes

    router = APIRouter(tags=["Batch API"])
    FileRoutes(store).add_to(router)
    BatchRoutes(store).add_to(router)
    return router
