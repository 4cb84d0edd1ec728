# SPDX-License-Identifier: Apache-2.0
"""Layers that do not keep every token: foreseen where their kind is known, else admission is vLLM's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_engine import make_requests, make_vllm_config, model_output
from pooled import BLOCK_SIZE, KV_GROUPS, full, make
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import CrossAttentionSpec, KVCacheConfig, KVCacheGroupSpec

from vllm_batchllm.config import BatchLLMConfig
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler
from vllm_batchllm.scheduler.settings import admission_for


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged as a scheduler is built."""
    found: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("vllm.batchllm.settings"), Keeping()
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield found
    logger.setLevel(before)
    logger.removeHandler(handler)


def build(cls: Any, llama: str, specs: list[Any], **options: Any) -> Any:
    config = make_vllm_config(
        llama,
        num_blocks=60,
        block_size=BLOCK_SIZE,
        max_num_seqs=32,
        max_num_batched_tokens=256,
        options=options or None,
    )
    return make(cls, config, specs)


@pytest.mark.parametrize("options", [{}, {"admission": "future"}, {"order": "paper"}])
def test_layers_of_another_kind_are_admitted_as_by_stock_with_one_line(
    lines: list[str], options: dict[str, Any]
) -> None:
    encoder = CrossAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    groups = [KVCacheGroupSpec([f"layer {n}"], one) for n, one in enumerate((full(), encoder))]
    kv_cache = KVCacheConfig(num_blocks=9, kv_cache_tensors=[], kv_cache_groups=groups)
    assert admission_for(BatchLLMConfig.parse(options), kv_cache) is None
    (line,) = [line for line in lines if "Admission: as vLLM's" in line]
    assert "CrossAttentionSpec" in line


@pytest.mark.parametrize("name", KV_GROUPS)
def test_layers_that_are_known_are_foreseen_without_a_word(
    llama: str, lines: list[str], name: str
) -> None:
    assert build(BatchLLMScheduler, llama, KV_GROUPS[name]).admission is not None
    assert not [line for line in lines if "Admission" in line]


@pytest.mark.parametrize("name", KV_GROUPS)
@pytest.mark.parametrize("max_tokens", [10, 40, 120])
@pytest.mark.parametrize("is_shared", [False, True])
def test_no_kind_of_layers_costs_steps_or_hits(
    llama: str, name: str, max_tokens: int, is_shared: bool
) -> None:
    """Against stock in sorted order; with something shared, against an unlimited cache as well."""
    prompts = sorted(
        [1 + n % 6] * 24 + [20 + n, 5, 6] if is_shared else [20 + n] * 27 for n in range(60)
    )
    found = {}
    for arm, cls, num_blocks in (
        ("stock", Scheduler, 160),
        ("ours", BatchLLMScheduler, 160),
        ("unlimited", BatchLLMScheduler, 9000),
    ):
        config = make_vllm_config(
            llama,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=1 if arm == "unlimited" else 32,
            max_num_batched_tokens=256,
        )
        scheduler = make(cls, config, KV_GROUPS[name])
        found[arm] = serve(scheduler, prompts, max_tokens)
    # With blocks of four tokens every token counts; benchmarks/layer_kinds.py has models' own sizes.
    assert found["ours"][0] <= 1.06 * found["stock"][0] + 1, "steps"
    assert found["ours"][1] >= 0.98 * found["unlimited"][1], "tokens found"


def serve(scheduler: Any, prompts: list[list[int]], max_tokens: int) -> tuple[int, int]:
    """Steps, and tokens found in the cache at first starts."""
    for request in make_requests(prompts, max_tokens=max_tokens, block_size=BLOCK_SIZE):
        scheduler.add_request(request)
    steps = hits = 0
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        hits += sum(new.num_computed_tokens for new in output.scheduled_new_reqs)
        scheduler.update_from_output(output, model_output(scheduler, output))
        steps += 1
        assert steps < 50_000, "it does not end"
    return steps, hits
