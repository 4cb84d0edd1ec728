# SPDX-License-Identifier: Apache-2.0
"""The engine as GPUs run it: model runner V2, with steps put together ahead of their outputs or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_process import run_alone
from tiny_engines import documents

V2_RUNNER = "vllm.v1.worker.gpu.model_runner"
AS_ON_GPUS = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}


SYNC = pytest.param(False, marks=pytest.mark.long, id="sync")
"""Left to `make test-long`: GPUs run the other, which is vLLM's default there."""


@pytest.mark.parametrize("is_async", [SYNC, pytest.param(True, id="async")])
def test_v2_runner_answers_as_stock_and_computes_less(
    tiny_model: str, tmp_path: Path, is_async: bool
) -> None:
    engine = {"async_scheduling": is_async}
    prompts = documents()
    scored = sorted(prompts)[:8]  # what the interpreter can score in seconds
    starts = [len(prompt) - 5 for prompt in scored]
    load = {"prompts": prompts, "scored": scored, "starts": starts, "max_tokens": 12}
    load["engine"] = engine
    found = run_alone("gpu_mode_run.py", tiny_model, load, tmp_path, **AS_ON_GPUS)
    stock, ours = found["stock"], found["ours"]
    assert V2_RUNNER in stock["runners"] and V2_RUNNER in ours["runners"]
    assert stock["scheduler"] == ("AsyncScheduler" if is_async else "Scheduler")
    assert ours["scheduler"] == ("AsyncBatchLLMScheduler" if is_async else "BatchLLMScheduler")
    assert ours["tokens"] == stock["tokens"]
    assert ours["num_computed"] < 0.8 * stock["num_computed"]
    assert ours["num_left"] == 0
    for ours_at, stock_at, start in zip(ours["values"], stock["values"], starts, strict=True):
        assert ours_at[start:] == stock_at[start:]
        assert ours_at[:start] == [None] * start and None not in stock_at[1:]
