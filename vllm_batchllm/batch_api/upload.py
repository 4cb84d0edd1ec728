# SPDX-License-Identifier: Apache-2.0
"""An upload, written to its file as it comes: neither in memory nor in a folder for temporary files."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from vllm_batchllm.batch_api.api_errors import APIError
from vllm_batchllm.batch_api.contents import Part

MAX_FIELD = 64 << 10
"""Largest field beside the content, and largest headers of one, bytes."""
MAX_FIELDS = 16


@dataclass(slots=True)
class Upload:
    """What has been uploaded: its content, the name that the client gave it, the other fields."""

    part: Part
    filename: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Form:
    """Where the parser is: called by it with pieces, which wait in `pieces` to be written."""

    headers: dict[str, str] = field(default_factory=dict)
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    filename: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    name: str = ""
    is_content: bool = False
    ended: bool = False

    def on_part_begin(self) -> None:
        if len(self.fields) >= MAX_FIELDS:
            raise APIError(400, f"the form has more than {MAX_FIELDS} fields")
        self.headers.clear()
        self.header.clear()
        self.value.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]
        self._bound(self.header)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]
        self._bound(self.value)

    def on_header_end(self) -> None:
        self.headers[self.header.decode("latin-1").lower()] = self.value.decode("utf-8", "replace")
        self.header.clear()
        self.value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self.headers.get("content-disposition", ""))
        self.name = options.get(b"name", b"").decode("utf-8", "replace")
        self.is_content = self.name == "file"
        if not self.is_content:
            return
        if self.filename is not None:
            raise APIError(
                400, "the form has more than one file; upload one at a time", param="file"
            )
        self.filename = options.get(b"filename", b"").decode("utf-8", "replace") or "file"

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self.is_content:
            self.pieces.append(data[start:end])
            return
        self.value += data[start:end]
        self._bound(self.value)

    def on_part_end(self) -> None:
        if not self.is_content:
            self.fields[self.name] = self.value.decode("utf-8", "replace")

    def on_end(self) -> None:
        self.ended = True

    def _bound(self, value: bytearray) -> None:
        if len(value) > MAX_FIELD:
            raise APIError(400, f"a field of the form has more than {MAX_FIELD} bytes")


async def receive(
    body: AsyncIterator[bytes], content_type: str, part: Part, max_bytes: int
) -> Upload:
    """The upload in a form of ``content_type``; its content is written to ``part``.

    Raises:
        APIError: it is no such form, or larger than ``max_bytes``; or there is no space.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise APIError(400, "an upload is a multipart/form-data with a boundary", param="file")
    form = _Form()
    callbacks = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
    try:
        async for chunk in body:
            parser.write(chunk)
            await _write(form.pieces, part, max_bytes)
    except MultipartParseError as error:
        raise APIError(400, f"the form cannot be read: {str(error)[:200]}", param="file") from None
    if not form.ended:
        raise APIError(400, "the form ends in the middle; upload it again", param="file")
    if form.filename is None:
        raise APIError(400, "the form has no file", param="file")
    return Upload(part, form.filename, form.fields)


async def _write(pieces: list[bytes], part: Part, max_bytes: int) -> None:
    data = b"".join(pieces)
    pieces.clear()
    if part.num_bytes + len(data) > max_bytes:
        raise too_large(max_bytes)
    if data:
        await asyncio.to_thread(part.write, data)


def too_large(max_bytes: int) -> APIError:
    """What somebody reads whose file is larger than allowed."""
    return APIError(
        413,
        f"the file is larger than {max_bytes >> 20} MiB, the largest that this server takes "
        "(--batch-max-file-mb); divide it",
        param="file",
        code="file_too_large",
    )


def not_stored(error: OSError) -> APIError:
    """What somebody reads whose file could not be written."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "no space is left" if is_full else f"{error.strerror or error}"
    return APIError(
        507 if is_full else 500,
        f"the file could not be stored on the server: {reason}. Nothing of it was kept",
        code="not_stored",
    )
