# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a batch as a whole. Single lines that are no request are answered with an error each instead."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vllm_batchllm.batch_api.schema import BatchError
from vllm_batchllm.input.line import JobLine
from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.input.scan import Input, LineReader
from vllm_batchllm.input.text_plan import repeated_ids
from vllm_batchllm.messages import clip

MAX_ERRORS = 50
"""As many are told of one batch."""


def problems(
    source: Input, endpoint: str, models: frozenset[str] | None, max_lines: int
) -> list[BatchError]:
    """Why this input is no batch for ``endpoint`` of a server with ``models``; empty if it is one.

    Reads every line once: seconds for a large file.
    """
    if not len(source):
        return [BatchError("empty_file", "the input file has no lines; put a request on each")]
    if len(source) > max_lines:
        return [
            BatchError(
                "too_many_lines",
                f"the input file has {len(source):,} lines, of {max_lines:,} at most that this server takes "
                "in a batch (--batch-max-requests); divide it",
            )
        ]
    found = []
    for error in _of_lines(source, endpoint, models):
        found.append(error)
        if len(found) == MAX_ERRORS:
            break
    return found


def _of_lines(source: Input, endpoint: str, models: frozenset[str] | None) -> Iterator[BatchError]:
    repeated = frozenset(np.flatnonzero(repeated_ids(source)).tolist())
    reader = LineReader(source)
    try:
        for index in range(len(source)):
            if source.is_bad[index]:
                continue
            try:
                line = reader.line(index)
            except BadLineError:  # the file has changed since; its line is answered with the reason
                continue
            error = _of_line(line, endpoint, models, index in repeated)
            if error is not None:
                yield error
    finally:
        reader.close()


def _of_line(
    line: JobLine, endpoint: str, models: frozenset[str] | None, is_repeated: bool
) -> BatchError | None:
    model = line.body.get("model")
    if line.is_plain:
        return BatchError(
            "invalid_line", "a line needs custom_id, method, url and body", "custom_id", line.number
        )
    if is_repeated:
        reason = f"custom_id {clip(line.custom_id)} stands on an earlier line, too; ids must differ"
        return BatchError("duplicate_custom_id", reason, "custom_id", line.number)
    if line.url != endpoint:
        reason = f"url {clip(line.url)} is not the batch's endpoint {endpoint!r}"
        return BatchError("mismatched_url", reason, "url", line.number)
    if models is not None and model is not None and str(model) not in models:
        reason = f"model {clip(model)} is not served here; served: {', '.join(sorted(models))}"
        return BatchError("model_not_found", reason, "body.model", line.number)
    return None
