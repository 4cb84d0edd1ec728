# SPDX-License-Identifier: Apache-2.0
"""Greedy sampling parameters that make every request produce exactly its output length."""

from __future__ import annotations

from typing import Any

from vllm_batchllm.prefix.readable import START
from vllm_batchllm.workloads.batch import Batch

#: Key in `SamplingParams.extra_args` that the forced-stop processor reads, tokens.
OUTPUT_LEN_KEY = "bench_output_len"
#: The token that ends requests of unknown length; workloads draw no prompt token this low.
STOP_TOKEN_ID = 2


def sampling_params(batch: Batch) -> list[Any]:
    """One `SamplingParams` per request, in the batch's order."""
    from vllm import SamplingParams

    if batch.starts is not None:
        return [
            SamplingParams(
                temperature=0,
                max_tokens=n,
                ignore_eos=True,
                detokenize=False,
                prompt_logprobs=1,
                extra_args={START: start},
            )
            for n, start in zip(batch.output_lens, batch.starts, strict=True)
        ]
    if batch.lengths_known:
        return [
            SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False)
            for n in batch.output_lens
        ]
    return [
        SamplingParams(
            temperature=0,
            max_tokens=batch.max_output_tokens,
            ignore_eos=True,
            detokenize=False,
            stop_token_ids=[STOP_TOKEN_ID],
            extra_args={OUTPUT_LEN_KEY: n},
        )
        for n in batch.output_lens
    ]
