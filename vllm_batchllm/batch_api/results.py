# SPDX-License-Identifier: Apache-2.0
"""From the journal of a batch to its output and its error file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from vllm_batchllm.batch_api.contents import Contents, Part

OK = 200


@dataclass(frozen=True, slots=True)
class Results:
    """Lines and bytes of what a batch has answered, and of what has failed in it."""

    num_answers: int = 0
    num_failures: int = 0
    answer_bytes: int = 0
    failure_bytes: int = 0


def write_results(contents: Contents, batch_id: str, answers_id: str, failures_id: str) -> Results:
    """Divide a batch's journal into two files, each there whole; one without lines is not made.

    Made again, it makes the same. A torn last line, which no line of the batch counts as answered, is left out.

    Raises:
        OSError: one could not be written; then neither is left half-written.
    """
    journal = contents.journal(batch_id)
    if not journal.exists():
        return Results()
    parts = contents.begin(), contents.begin()
    numbers = [0, 0]
    try:
        with journal.open("rb") as lines:
            for raw in lines:
                record = _record(raw)
                if record is not None:
                    place = 0 if is_answer(record) else 1
                    parts[place].write(raw)
                    numbers[place] += 1
    except BaseException:
        for part in parts:
            part.abandon()
        raise
    for part, number, name in zip(parts, numbers, (answers_id, failures_id), strict=True):
        _keep(contents, part, number, name)
    return Results(*numbers, *(part.num_bytes for part in parts))


def is_answer(record: Mapping[str, Any]) -> bool:
    """Whether a line of a journal holds what was asked for."""
    response = record.get("response")
    is_ok = isinstance(response, dict) and response.get("status_code") == OK
    return is_ok and record.get("error") is None


def _keep(contents: Contents, part: Part, number: int, name: str) -> None:
    if number:
        contents.keep(part, name)
    else:
        part.abandon()
        contents.remove(name)


def _record(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        record = from_json(raw)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
