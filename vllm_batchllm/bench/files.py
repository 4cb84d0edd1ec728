# SPDX-License-Identifier: Apache-2.0
"""A user's own file as a batch of the benchmark: all of it, or some whole groups."""

from __future__ import annotations

from dataclasses import replace

from vllm_batchllm.errors import UsageError
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.sources import InputOptions, load_batch


def file_batch(
    path: str, options: InputOptions, vocab_size: int, num_requests: int | None = None
) -> Batch:
    """The requests of a file, or a sample of `num_requests`, for a model of so large a vocabulary.

    Raises:
        UsageError: the file cannot be read, or holds tokens that the model does not know.
    """
    batch = load_batch(path, replace(options, num_requests=num_requests))
    largest = max(map(max, batch.prompts))
    if largest >= vocab_size:
        raise UsageError(
            f"{path} has the token {largest}, and the model knows {vocab_size}; "
            "give the --model that the file was made for"
        )
    return batch
