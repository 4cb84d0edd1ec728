# SPDX-License-Identifier: Apache-2.0
"""Errors that a client of the Batch API gets, in the format of the public API."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from vllm_batchllm.batch_api.database import DatabaseAway
from vllm_batchllm.messages import clip

Handler = Callable[[Request], Awaitable[Response]]


class APIError(Exception):
    """A request that is not served: the HTTP status, and what the client reads.

    param: the field at fault. code: a word for programs.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status)


def not_found(kind: str, name: object) -> APIError:
    """There is none of that id, or it belongs to another API key: the two are not told apart."""
    return APIError(404, f"no {kind} {clip(name)} is here", param=f"{kind}_id", code="not_found")


def answering_errors(handler: Handler) -> Handler:
    """The handler, with its errors as answers in the format of the public API."""

    @functools.wraps(handler)
    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except APIError as error:
            return error.response()
        except ClientDisconnect:
            return APIError(400, "the request ends in the middle").response()  # nobody reads it
        except DatabaseAway as error:
            return APIError(503, f"{error}; try again", code="database_away").response()

    return answered


def whole_number(text: str | None, name: str, default: int, most: int) -> int:
    """A query parameter from 1 to ``most``.

    Raises:
        APIError: it is no such number.
    """
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise APIError(400, f"{name} = {clip(text)} is not from 1 to {most}", param=name)
    return int(text)


def checked(value: Any, kind: type, name: str) -> Any:
    """``value`` if it is of ``kind``.

    Raises:
        APIError: names the field and what was given.
    """
    if not isinstance(value, kind):
        given = "is missing" if value is None else f"= {clip(value)} is not allowed"
        raise APIError(400, f"{name} {given}; give a {kind.__name__}", param=name)
    return value
