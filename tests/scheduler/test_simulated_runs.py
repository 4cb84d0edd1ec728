# SPDX-License-Identifier: Apache-2.0
"""Simulated runs: real schedulers served to the end, charged by the cost model, never beaten."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import batch_of, batches, trie_size

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import DEVICES
from vllm_batchllm.hardware.models import MODELS
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.simulate import bound, engine
from vllm_batchllm.simulate.arms import arm_names, find_arm
from vllm_batchllm.simulate.cost_model import Constants, Measured, MeasuredCosts, Roofline, StepTime
from vllm_batchllm.simulate.ring import RingSpec, build_scheduler, make_requests, sample
from vllm_batchllm.simulate.run import SimulatedRun, run_arm
from vllm_batchllm.simulate.sizes import EngineSizes
from vllm_batchllm.simulate.work import WorkMeter
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.catalog import make_workload

ON_CPU = MeasuredCosts(5e-3, 4e-5, 6e-5, kv_s=9e-8, held_s=3.5e-7, pair_s=1e-8)
COSTS = Roofline(
    DEVICES["A100-80GB"], MODELS["Llama-3.1-8B"], Constants(0.6, step_s=1e-3, request_s=1e-4)
)
SIZES = EngineSizes(
    num_blocks=60, block_size=16, max_num_seqs=8, batchllm_max_num_seqs=12,
    max_num_batched_tokens=256,
)  # fmt: skip
BATCH = make_workload("mixed", scale=32, num_requests=24)


def served(batch: Batch, name: str, sizes: EngineSizes = SIZES, costs: Any = COSTS) -> SimulatedRun:
    return run_arm(
        batch, find_arm(name), sizes, costs, optimal_saved_tokens(batch.prompts, sizes.block_size)
    )


def counters(simulated: SimulatedRun) -> dict[str, Any]:
    """Everything that does not depend on this machine."""
    return asdict(replace(simulated.metrics, plan_s=0.0, plan_share=0.0)) | asdict(simulated.parts)


@pytest.mark.parametrize("name", arm_names())
def test_every_arm_serves_the_whole_batch_and_accounts_for_its_time(name: str) -> None:
    ended: list[int] = []
    saved = optimal_saved_tokens(BATCH.prompts, SIZES.block_size)
    simulated = run_arm(BATCH, find_arm(name), SIZES, COSTS, saved, ended.append)
    metrics = simulated.metrics
    assert sum(ended) == BATCH.num_requests
    assert metrics.computed_prompt_tokens >= BATCH.prompt_tokens - saved
    if not metrics.preemptions:
        assert metrics.computed_prompt_tokens <= BATCH.prompt_tokens
        tokens = metrics.computed_prompt_tokens + BATCH.output_tokens - BATCH.num_requests
        assert sum(metrics.step_tokens) == tokens
    assert metrics.makespan_s == pytest.approx(simulated.parts.total_s)
    assert len(metrics.step_kv_blocks) == metrics.steps
    assert 0 < (simulated.mean_kv_share(SIZES.num_blocks) or 0) <= 1
    most = SIZES.batchllm_max_num_seqs if find_arm(name).is_ours else SIZES.max_num_seqs
    assert metrics.running_peak <= most


@pytest.mark.parametrize("name", ["stock", "batchllm", "lpm"])
def test_a_run_repeats(name: str) -> None:
    assert counters(served(BATCH, name)) == counters(served(BATCH, name))


def test_the_stock_arm_is_vllms_scheduler_stepped_by_hand() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    spec = RingSpec(SIZES.num_blocks, SIZES.block_size, SIZES.max_num_seqs,
                    SIZES.max_num_batched_tokens, BATCH.max_request_tokens)  # fmt: skip
    scheduler = build_scheduler(Scheduler, spec)
    order = list(range(BATCH.num_requests))
    for request in make_requests(BATCH, order, SIZES.block_size):
        scheduler.add_request(request)
    ends = {str(place): length for place, length in enumerate(BATCH.output_lens)}
    meter, total, step_tokens = WorkMeter(), StepTime(), []
    pool = scheduler.kv_cache_manager.block_pool
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        made = sample(scheduler, output, ends)
        held = SIZES.block_size * (pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
        num_sampled = len([tokens for tokens in made.sampled_token_ids if tokens])
        total.add(COSTS.time_of(meter.work_of(output, num_sampled, held)))
        step_tokens.append(output.total_num_scheduled_tokens)
        scheduler.update_from_output(output, made)
    stock = served(BATCH, "stock")
    assert stock.metrics.step_tokens == tuple(step_tokens)
    for field in fields(StepTime):
        assert getattr(stock.parts, field.name) == pytest.approx(getattr(total, field.name))


def test_our_scheduler_plans_by_the_simulated_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    elsewhere: list[Environment] = []
    build, schedule = engine.build_scheduler, engine.BatchLLMScheduler.schedule

    def remember(cls: Any, spec: RingSpec, environment: Environment, **options: Any) -> Any:
        elsewhere.append(environment)
        return build(cls, spec, environment, **options)

    def look(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(elsewhere[0].clock())
        return schedule(scheduler, *args, **kwargs)

    monkeypatch.setattr(engine, "build_scheduler", remember)
    monkeypatch.setattr(engine.BatchLLMScheduler, "schedule", look)
    simulated = served(BATCH, "batchllm", replace(SIZES, platform="cpu"))
    assert [environment.platform for environment in elsewhere] == ["cpu"]
    assert seen[0] == 0 and seen == sorted(seen)
    assert seen[-1] < simulated.metrics.makespan_s == elsewhere[0].clock()


def test_unknown_lengths_end_with_a_stop_token_at_the_right_place() -> None:
    batch = replace(BATCH, lengths_known=False)
    for name in ("stock", "batchllm"):
        metrics = served(batch, name).metrics
        assert metrics.output_tokens == BATCH.output_tokens
        computed = metrics.computed_prompt_tokens + BATCH.output_tokens - BATCH.num_requests
        assert metrics.preemptions or sum(metrics.step_tokens) == computed


def test_few_that_wait_at_once_see_less_sharing() -> None:
    batch = make_workload("micro-2000-200-d16", scale=32, num_requests=64)
    tight = replace(SIZES, num_blocks=14)
    near = served(batch, "batchllm", replace(tight, max_waiting=1))
    far = served(batch, "batchllm", tight)
    assert far.metrics.saved_ratio > near.metrics.saved_ratio


def test_without_prefix_caching_every_token_is_computed() -> None:
    metrics = served(BATCH, "stock", replace(SIZES, prefix_caching=False)).metrics
    assert metrics.computed_prompt_tokens >= BATCH.prompt_tokens
    assert metrics.saved_ratio <= 0


def test_a_request_larger_than_the_cache_is_refused() -> None:
    with pytest.raises(UsageError, match=r"has 40 tokens, which is 3 KV blocks of 16; there are 2"):
        served(batch_of([[1] * 39], [1]), "stock", replace(SIZES, num_blocks=2))


# The bound


@st.composite
def engines(draw: st.DrawFn) -> tuple[EngineSizes, Any]:
    """A small engine that can hold any request of `batches`, and its costs."""
    block_size = draw(st.sampled_from([2, 4, 16]))
    least = -(-48 // block_size)  # 4 pieces of 8, a tail of 6, 9 outputs
    sizes = EngineSizes(
        num_blocks=least + draw(st.integers(0, 40)),
        block_size=block_size,
        max_num_seqs=draw(st.integers(1, 6)),
        batchllm_max_num_seqs=draw(st.integers(6, 9)),
        max_num_batched_tokens=draw(st.integers(9, 40)),
        prefix_caching=draw(st.booleans()),
        platform=draw(st.sampled_from(["cpu", "cuda"])),
    )
    costs = draw(st.sampled_from(
        [COSTS, Measured(ON_CPU), replace(COSTS, kv_reading="once")]
    ))  # fmt: skip
    return sizes, costs


@settings(max_examples=50)
@given(batches(), engines(), st.sampled_from(arm_names()))
def test_no_schedule_is_faster_than_the_bound(
    batch: Batch, engine: tuple[EngineSizes, Any], name: str
) -> None:
    sizes, costs = engine
    least = bound.lower_bound(batch, sizes, costs).total_s
    assert served(batch, name, sizes, costs).metrics.makespan_s >= least * (1 - 1e-9)


def test_steps_that_only_compute_prompts_do_not_read_the_head() -> None:
    batch = batch_of([list(range(1000))], [1])
    sizes = replace(SIZES, num_blocks=100, max_num_batched_tokens=100)
    simulated = served(batch, "stock", sizes)
    least = bound.lower_bound(batch, sizes, COSTS)
    assert simulated.metrics.steps == 10
    assert least.head_s == simulated.parts.head_s
    assert least.total_s <= simulated.metrics.makespan_s


@given(batches(), st.sampled_from([1, 2, 5, 16]))
def test_hits_by_request_add_up_to_the_optimum(batch: Batch, block_size: int) -> None:
    hits = bound.optimal_hits(batch.prompts, block_size)
    assert sum(hits) == optimal_saved_tokens(batch.prompts, block_size)
    assert all(hit < len(prompt) for hit, prompt in zip(hits, batch.prompts, strict=True))
    if block_size == 1 and len({*map(tuple, batch.prompts)}) == batch.num_requests:
        computed = batch.prompt_tokens - sum(hits)
        assert computed >= trie_size(batch.prompts)


@given(st.integers(1, 60), st.integers(1, 30), st.integers(1, 20))
def test_blocks_held_alone_are_counted_step_by_step(own: int, outputs: int, size: int) -> None:
    counted = sum(-(-(own + step) // size) for step in range(outputs))
    assert bound._own_block_steps(own, outputs, size) == counted


@given(batches(), engines())
def test_the_least_number_of_steps_is_the_tightest_limit(
    batch: Batch, engine: tuple[EngineSizes, Any]
) -> None:
    sizes, _ = engine
    hits = bound.optimal_hits(batch.prompts, sizes.block_size)
    own = [len(prompt) - hit for prompt, hit in zip(batch.prompts, hits, strict=True)]
    held = [
        -(-(tokens + step) // sizes.block_size)
        for tokens, output in zip(own, batch.output_lens, strict=True)
        for step in range(output)
    ]
    seqs = max(sizes.max_num_seqs, sizes.batchllm_max_num_seqs)

    def enough(steps: int) -> bool:
        return (
            steps >= max(batch.output_lens)
            and steps * seqs >= batch.output_tokens
            and steps * sizes.num_blocks >= sum(held)
        )

    sampling = next(steps for steps in range(1, 10_000) if enough(steps))
    assert bound.min_sampling_steps(batch, hits, sizes) == sampling
    tokens = sum(own) + batch.output_tokens - batch.num_requests
    steps = next(n for n in range(sampling, 10_000) if n * sizes.max_num_batched_tokens >= tokens)
    assert bound.min_steps(batch, hits, sizes) == steps
