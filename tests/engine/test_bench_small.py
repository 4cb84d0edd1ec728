# SPDX-License-Identifier: Apache-2.0
"""A whole A/B on real engines, shared with the rest of the session, on a tiny workload."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import ENGINE

from vllm_batchllm.bench.engine import EngineSpec
from vllm_batchllm.bench.engines import Engines
from vllm_batchllm.bench.pace import Progress
from vllm_batchllm.bench.runner import run_ab
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.metrics import ABResult
from vllm_batchllm.workloads.catalog import make_workload

BATCH = make_workload("micro-2000-200-d4", scale=16, num_requests=24, vocab_size=40_000)
ARMS = ("stock", "sorted", "batchllm")


def spec_of(model: str) -> EngineSpec:
    return EngineSpec(
        model=model,
        kv_blocks=ENGINE["num_gpu_blocks_override"],
        max_model_len=ENGINE["max_model_len"],
    )


@pytest.fixture(scope="module")
def events() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def result(smollm2: str, stock_llm: Any, batch_llm: Any, events: list[Progress]) -> ABResult:
    llms = {"stock": stock_llm, "batchllm": batch_llm}
    return run_ab(spec_of(smollm2), BATCH, ARMS, 1, events.append, llms, quick=True)


def test_every_arm_ran_every_request_to_its_length(result: ABResult) -> None:
    assert [run.arm for run in result.runs] == list(ARMS)
    for run in result.runs:
        assert run.num_requests == 24
        assert sum(run.step_tokens) >= run.computed_prompt_tokens + 24 * (6 - 1)
        assert run.kv_peak_blocks <= ENGINE["num_gpu_blocks_override"]
        assert run.running_peak <= ENGINE["max_num_seqs"]


def test_counted_prompt_tokens_are_those_not_found_in_the_cache(result: ABResult) -> None:
    for run in result.runs:
        if not run.preemptions:
            hits = run.admission_saved_ratio * run.prompt_tokens
            assert run.computed_prompt_tokens == pytest.approx(run.prompt_tokens - hits)


def test_batchllm_and_sorted_reuse_all_that_can_be_reused_and_stock_less(
    result: ABResult,
) -> None:
    assert result.medians("batchllm")["reuse_efficiency"] == pytest.approx(1.0)
    assert result.medians("sorted")["reuse_efficiency"] == pytest.approx(1.0)
    assert result.medians("stock")["reuse_efficiency"] < 0.99


def test_outputs_are_equal(result: ABResult) -> None:
    for arm in ARMS:
        assert result.match(arm).num_compared == 24
        assert result.match(arm).ratio == 1.0


def test_progress_tells_of_every_run(result: ABResult, events: list[Progress]) -> None:
    assert [event.run for event in events if event.run] == list(result.runs)
    assert events[-1].num_done == events[-1].num_runs == 3


def test_engines_from_elsewhere_are_left_running(result: ABResult, stock: Any) -> None:
    assert not Engines({"stock": stock}).owned
    assert stock.generate([{"prompt_token_ids": [9, 10]}], use_tqdm=False)


def test_too_few_rounds_and_batches_that_do_not_fit_are_refused(
    smollm2: str, stock_llm: Any
) -> None:
    llms = {"stock": stock_llm}
    with pytest.raises(UsageError, match="at least 3"):
        run_ab(spec_of(smollm2), BATCH, ("stock",), 2, llms=llms)
    long = make_workload("micro-2000-200", scale=1, num_requests=2)
    with pytest.raises(UsageError, match="max_model_len = 768"):
        run_ab(spec_of(smollm2), long, ("stock",), llms=llms)
    with pytest.raises(UsageError, match="unknown arm 'fast'"):
        run_ab(spec_of(smollm2), BATCH, ("fast",), llms=llms)
