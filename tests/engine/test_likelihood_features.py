# SPDX-License-Identifier: Apache-2.0
"""A start of prompt log-probabilities beside salts, drafts, and tensor parallelism; values against stock's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_process import run_alone
from tiny_engines import StockLLM, documents, greedy, pair, started

NUM_SCORED = 5
ROOM = {"num_gpu_blocks_override": 120}


def scored(start: int | None, max_tokens: int = 1) -> Any:
    params = greedy(max_tokens, ignore_eos=True, prompt_logprobs=1)
    if start is not None:
        params.extra_args = {"prompt_logprobs_start": start}
    return params


def check(values: list[Any], whole: list[Any], start: int) -> None:
    """Nothing before the start, stock's values from there on."""
    assert values[:start] == [None] * start
    for ours_at, stock_at in zip(values[start:], whole[start:], strict=True):
        assert ours_at == {
            token: pytest.approx(value, abs=1e-5) for token, value in stock_at.items()
        }


def plain(output: Any) -> list[Any]:
    return [
        each and {str(token): one.logprob for token, one in each.items()}
        for each in output.prompt_logprobs
    ]


def test_salts_keep_their_prefixes_apart(tiny_model: str) -> None:
    # With adapters vLLM's own CPU engine computes no log-probabilities of prompts: its logits processor fails.
    prompts = documents(num_documents=2, members=8)
    inputs: list[dict[str, Any]] = [
        {"prompt_token_ids": p, "cache_salt": "salt" if n % 2 else "pepper"}
        for n, p in enumerate(prompts)
    ]
    starts = [len(prompt) - NUM_SCORED for prompt in prompts]
    with pair(tiny_model, **ROOM) as engines:
        whole = engines.stock.generate(inputs, scored(None), use_tqdm=False)
        params = [scored(start) for start in starts]
        outputs = engines.ours.generate(inputs, params, use_tqdm=False)
    for output, other, start in zip(outputs, whole, starts, strict=True):
        check(plain(output), plain(other), start)
    groups = {(tuple(p[:100]), n % 2) for n, p in enumerate(prompts)}
    hits = sum(bool(output.num_cached_tokens) for output in outputs)
    assert hits == len(prompts) - len(groups) > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "max_tokens"),
    [
        ({"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}, 1),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2,
                                 "prompt_lookup_max": 2, "prompt_lookup_min": 1}}, 12),
    ],
    ids=["tensor parallel", "drafts"],
)  # fmt: skip
def test_a_start_in_other_engines(
    tiny_model: str, tmp_path: Path, engine: dict[str, Any], max_tokens: int
) -> None:
    prompts = documents(num_documents=2, members=5)
    starts = [len(prompt) - NUM_SCORED for prompt in prompts]
    with started(StockLLM, tiny_model, **ROOM) as stock:
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        whole = stock.generate(inputs, scored(None, max_tokens), use_tqdm=False)
    load = {"prompts": prompts, "starts": starts, "max_tokens": max_tokens, "engine": ROOM | engine}
    found = run_alone("scored_run.py", tiny_model, load, tmp_path)
    assert found["tokens"] == [list(output.outputs[0].token_ids) for output in whole]
    assert found["num_cached"] > 0
    for values, other, start in zip(found["values"], whole, starts, strict=True):
        check(values, plain(other), start)
