# SPDX-License-Identifier: Apache-2.0
"""Real engines with the options for servers: the same tokens, in steps of other sizes, at other times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_engines import documents, generate, greedy, scheduler_of, started, tokens
from vllm import LLM as StockLLM

from vllm_batchllm import LLM

ALL: dict[str, Any] = {
    "target_tbt_ms": 4.0,
    "release": "all",
    "one_shot_tokens": 2,
    "max_hold_s": 0.05,
    "power_weight": 1.0,
    "idle_power_w": 20.0,
    "busy_power_w": 200.0,
}


def test_held_requests_and_sized_steps_give_the_tokens_of_stock(tiny_model: str) -> None:
    prompts = documents()
    params = [greedy(1 + place % 6) for place in range(len(prompts))]
    with started(StockLLM, tiny_model) as stock:
        expected = tokens(generate(stock, prompts, params))
    with started(LLM, tiny_model, batchllm=ALL) as ours:
        assert tokens(generate(ours, prompts, params)) == expected
        counters = scheduler_of(ours).batchllm_snapshot()
        assert not len(scheduler_of(ours).waiting)
    num_one_shot = sum(each.max_tokens <= 2 for each in params)
    assert counters["num_held_ever"] >= num_one_shot
    assert counters["num_held"] == 0 < counters["num_releases"]
    assert counters["hold_s"] <= counters["num_held_ever"] * (0.05 + 0.5)


@pytest.mark.long
def test_held_embeddings_are_stocks(tiny_model: str, smollm2: str) -> None:
    inputs = [{"prompt_token_ids": prompt} for prompt in documents()]
    pooling: dict[str, Any] = {
        "runner": "pooling",
        "convert": "embed",
        "max_num_seqs": len(inputs) // 2,
        "tokenizer": smollm2,
        "skip_tokenizer_init": False,
    }
    with started(StockLLM, tiny_model, **pooling) as stock:
        expected = stock.embed(inputs, use_tqdm=False)
    options = {"release": "one-shot", "max_hold_s": 0.05}
    with started(LLM, tiny_model, batchllm=options, **pooling) as ours:
        outputs = ours.embed(inputs, use_tqdm=False)
        counters = scheduler_of(ours).batchllm_snapshot()
    assert counters["num_held_ever"] == len(inputs)
    torch.testing.assert_close(
        *(
            torch.tensor([each.outputs.embedding for each in group])
            for group in (outputs, expected)
        ),
        atol=1e-5,
        rtol=1e-4,
    )
