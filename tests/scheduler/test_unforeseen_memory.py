# SPDX-License-Identifier: Apache-2.0
"""Layers that do not keep every token: admission is vLLM's until their memory can be foreseen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import make_requests, make_vllm_config, model_output
from pooled import BLOCK_SIZE, KV_GROUPS, full, make, sliding_window
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

PROMPTS = [[1 + n % 6] * 24 + [20 + n, 5, 6] for n in range(60)]


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


@pytest.mark.parametrize("name", [name for name in KV_GROUPS if name != "full"])
@pytest.mark.parametrize("options", [{}, {"admission": "future"}, {"order": "paper"}])
def test_windows_and_states_are_admitted_as_by_stock_with_one_line(
    llama: str, lines: list[str], name: str, options: dict[str, Any]
) -> None:
    scheduler = build(BatchLLMScheduler, llama, KV_GROUPS[name], **options)
    assert scheduler.admission is None
    (line,) = [line for line in lines if "Admission: as vLLM's" in line]
    assert ("MambaSpec" if "Mamba" in name else "SlidingWindowSpec") in line


@pytest.mark.parametrize("specs", [[sliding_window()], [full(), sliding_window()]])
def test_a_window_costs_no_step_more_than_with_stock(llama: str, specs: list[Any]) -> None:
    steps = {}
    for cls in (Scheduler, BatchLLMScheduler):
        scheduler = build(cls, llama, specs)
        for request in make_requests(PROMPTS, max_tokens=40, block_size=BLOCK_SIZE):
            scheduler.add_request(request)
        steps[cls] = 0
        while scheduler.has_unfinished_requests():
            output = scheduler.schedule()
            scheduler.update_from_output(output, model_output(scheduler, output))
            steps[cls] += 1
    assert steps[BatchLLMScheduler] <= steps[Scheduler]
