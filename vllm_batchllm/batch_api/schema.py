# SPDX-License-Identifier: Apache-2.0
"""Files, batches and lists as the public API shows them, made from rows."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_batchllm.batch_api.states import MOMENTS

WINDOW = re.compile(r"([1-9][0-9]{0,5})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_WINDOW_S = 30 * 86400
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
"""Of metadata: pairs, characters of a key, characters of a value."""


@dataclass(frozen=True, slots=True)
class BatchError:
    """Why a batch failed: a word for programs, a sentence, the field, the line (from 1)."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


def new_file_id() -> str:
    """An id that nobody can guess."""
    return f"file-{secrets.token_hex(16)}"


def new_batch_id() -> str:
    """An id that nobody can guess."""
    return f"batch_{secrets.token_hex(16)}"


def window_seconds(window: str) -> int | None:
    """Seconds of a completion window such as ``24h``; None where it is none, or over 30 days."""
    match = WINDOW.fullmatch(window)
    if match is None:
        return None
    seconds = int(match[1]) * SECONDS[match[2]]
    return seconds if seconds <= MAX_WINDOW_S else None


def file_object(row: Mapping[str, Any]) -> dict[str, Any]:
    """A `file` of the public API."""
    told = ("id", "bytes", "created_at", "filename", "purpose")
    return {
        "object": "file",
        **{name: row[name] for name in told},
        "expires_at": None,
        "status": "processed",
        "status_details": None,
    }


def batch_object(row: Mapping[str, Any]) -> dict[str, Any]:
    """A `batch` of the public API."""
    errors = json.loads(row["errors"]) if row["errors"] else None
    told = ("endpoint", "input_file_id", "completion_window", "status")
    return {
        "id": row["id"],
        "object": "batch",
        **{name: row[name] for name in told},
        "errors": {"object": "list", "data": errors} if errors else None,
        "output_file_id": row["output_file_id"],
        "error_file_id": row["error_file_id"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        **{name: row[name] for name in MOMENTS},
        "request_counts": {name: row[name] for name in ("total", "completed", "failed")},
        "metadata": json.loads(row["metadata"]) if row["metadata"] else None,
    }


def page(objects: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page of a list."""
    return {
        "object": "list",
        "data": list(objects),
        "first_id": objects[0]["id"] if objects else None,
        "last_id": objects[-1]["id"] if objects else None,
        "has_more": has_more,
    }


def errors_json(errors: Sequence[BatchError]) -> str:
    """Errors as a row holds them."""
    return json.dumps([asdict(error) for error in errors])


def metadata_problem(metadata: Mapping[Any, Any]) -> str | None:
    """What the public API does not allow of ``metadata``; None if nothing."""
    if len(metadata) > MAX_PAIRS:
        return f"metadata has {len(metadata)} pairs, of {MAX_PAIRS} at most"
    for key, value in metadata.items():
        if len(key) > MAX_KEY:
            return f"metadata has a key of {len(key)} characters, of {MAX_KEY} at most"
        if not isinstance(value, str) or len(value) > MAX_VALUE:
            return f"metadata[{key!r}] is no text of {MAX_VALUE} characters at most"
    return None
