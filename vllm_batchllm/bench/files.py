# SPDX-License-Identifier: Apache-2.0
"""A user's own file as a batch of the benchmark: all of it, or some whole groups."""

from __future__ import annotations

import random
from dataclasses import replace

from vllm_batchllm.errors import UsageError
from vllm_batchllm.workloads.batch import REFERENCE_BLOCK_SIZE, Batch
from vllm_batchllm.workloads.sources import InputOptions, load_batch


def file_batch(
    path: str, options: InputOptions, vocab_size: int, num_requests: int | None = None
) -> Batch:
    """The requests of a file, or a sample of `num_requests`, for a model of so large a vocabulary.

    Raises:
        UsageError: the file cannot be read, or holds tokens that the model does not know.
    """
    batch = chosen(
        load_batch(path, replace(options, num_requests=None)), num_requests, options.seed
    )
    largest = max(map(max, batch.prompts))
    if largest >= vocab_size:
        raise UsageError(
            f"{path} has the token {largest}, and the model knows {vocab_size}; "
            "give the --model that the file was made for"
        )
    return batch


def chosen(batch: Batch, num_requests: int | None, seed: int) -> Batch:
    """`num_requests` requests of `batch`, whole groups drawn at random; the last of them may be cut.

    A group shares its first block. The requests keep their order.
    """
    if num_requests is None or num_requests >= batch.num_requests:
        return batch
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(batch.prompts):
        groups.setdefault(tuple(prompt[:REFERENCE_BLOCK_SIZE]), []).append(place)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    places = sorted([place for group in order for place in group][:num_requests])
    found = f"{num_requests:,} of {batch.num_requests:,} requests, whole prefix groups at random"
    return replace(
        batch,
        prompts=[batch.prompts[place] for place in places],
        output_lens=[batch.output_lens[place] for place in places],
        starts=None if batch.starts is None else [batch.starts[place] for place in places],
        arrivals_s=None,
        seed=seed,
        description=f"{batch.description}, {found}",
    )
