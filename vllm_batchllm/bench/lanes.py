# SPDX-License-Identifier: Apache-2.0
"""A batch on its way through the engine of an arm."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vllm_batchllm.bench.engine import SORTED, TUNED
from vllm_batchllm.bench.sampling import sampling_params
from vllm_batchllm.bench.turns import Lane
from vllm_batchllm.measure.recorder import StepRecord
from vllm_batchllm.workloads.batch import Batch


def lane_of(arm: str, llm: Any, batch: Batch, counts: StepRecord) -> Lane:
    """The requests of ``batch`` on their way through the engine of ``arm``.

    counts: what is recorded of its scheduler.
    """
    from vllm.sampling_params import RequestOutputKind

    all_params = sampling_params(batch)
    requests = []
    for index in arrival_order(batch, arm):
        params = all_params[index].clone()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        requests.append(({"prompt_token_ids": batch.prompts[index]}, params))
    return Lane(arm, llm.llm_engine, requests, counts, batch.output_tokens, batch.prompt_tokens)


def arrival_order(batch: Batch, arm: str) -> list[int]:
    """Indices of the requests in the order in which the arm queues them."""
    indices = list(range(batch.num_requests))
    if arm == SORTED or arm in TUNED:
        indices.sort(key=lambda index: batch.prompts[index])
    return indices


def first_requests(batch: Batch, number: int) -> Batch:
    """The first requests of ``batch``, all of them if there are no more."""
    return replace(
        batch,
        prompts=batch.prompts[:number],
        output_lens=batch.output_lens[:number],
        starts=None if batch.starts is None else batch.starts[:number],
        arrivals_s=None,
    )


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Nothing that is here already is looked through by the garbage collector, as in an engine's own process.

    Else whoever makes most objects pays for looking through the models of all arms.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
