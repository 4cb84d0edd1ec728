# SPDX-License-Identifier: Apache-2.0
"""Several replicas in one process: one of them is the run of one engine, all requests end once, thefts pay."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import pytest
from vllm.v1.request import Request

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import DEVICES
from vllm_batchllm.hardware.models import MODELS
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.simulate import replicas
from vllm_batchllm.simulate.arms import find_arm
from vllm_batchllm.simulate.cost_model import Constants, Roofline, StepWork
from vllm_batchllm.simulate.graphs import Graphs, capture_sizes
from vllm_batchllm.simulate.placement import PLACEMENTS
from vllm_batchllm.simulate.pool import Pool
from vllm_batchllm.simulate.replicas import run_replicas
from vllm_batchllm.simulate.ring import RequestMaker
from vllm_batchllm.simulate.run import SimulatedRun, run_arm
from vllm_batchllm.simulate.sizes import EngineSizes
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.catalog import make_workload

COSTS = Roofline(
    DEVICES["A100-80GB"], MODELS["Llama-3.1-8B"], Constants(0.6, step_s=1e-3, request_s=1e-4)
)
SIZES = EngineSizes(
    num_blocks=120, block_size=16, max_num_seqs=16, batchllm_max_num_seqs=16,
    max_num_batched_tokens=256, is_async=True,
)  # fmt: skip
BATCH = make_workload("micro-2000-200-d4", scale=16, num_requests=96)


def saved(batch: Batch) -> int:
    return optimal_saved_tokens(batch.prompts, SIZES.block_size)


def served(
    pool: Pool, batch: Batch = BATCH, arm: str = "batchllm", sizes: EngineSizes = SIZES
) -> SimulatedRun:
    return run_replicas(batch, find_arm(arm), sizes, COSTS, pool, saved(batch))


def figures(run: SimulatedRun) -> dict[str, Any]:
    """Everything that does not depend on this machine."""
    metrics = asdict(replace(run.metrics, arm="", plan_s=0.0, plan_share=0.0))
    return metrics | asdict(run.parts) | {"pool": run.pool and asdict(run.pool)}


@pytest.mark.parametrize("known", [True, False])
def test_one_replica_is_the_run_of_one_engine_with_the_same_window(known: bool) -> None:
    batch = replace(BATCH, prompts=sorted(BATCH.prompts), lengths_known=known)
    sizes = replace(SIZES, max_waiting=20)
    one = run_arm(batch, find_arm("batchllm"), sizes, COSTS, saved(batch))
    pooled = served(Pool(), batch, sizes=sizes)
    assert pooled.pool is not None and pooled.pool.duplicated_tokens == 0
    assert figures(replace(pooled, pool=None)) == figures(one)
    assert pooled.graph_modes == one.graph_modes


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_request_ends_once_wherever_it_is_placed(
    placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: Counter[str] = Counter()
    step = replicas.SimulatedEngine.step

    def count(engine: Any) -> set[str]:
        ended = step(engine)
        ends.update(ended)
        return ended

    monkeypatch.setattr(replicas.SimulatedEngine, "step", count)
    run = served(Pool(3, placement, 0.5), replace(BATCH, lengths_known=False))
    assert ends == Counter(map(str, range(BATCH.num_requests)))
    assert run.pool is not None
    assert sum(run.pool.num_requests) == BATCH.num_requests
    assert run.metrics.makespan_s == max(run.pool.ends_s)
    assert run.metrics.steps == len(run.metrics.step_kv_blocks)
    whole = run.metrics.prompt_tokens - saved(BATCH)
    assert run.metrics.computed_prompt_tokens >= whole + run.pool.duplicated_tokens
    idle = 1 - run.parts.total_s / run.metrics.makespan_s
    assert idle == pytest.approx(run.pool.idle_ratio)


def test_a_run_repeats() -> None:
    pool = Pool(3, slowest_speed=0.5)
    batch = replace(BATCH, lengths_known=False)
    assert figures(served(pool, batch)) == figures(served(pool, batch))


def test_ours_computes_less_twice_than_any_other_placement() -> None:
    runs = {name: served(Pool(4, name)).pool for name in PLACEMENTS}
    ours = runs["ours"]
    assert ours is not None
    assert ours.duplicated_tokens == ours.optimal_duplicated_tokens
    for name, other in runs.items():
        assert other is not None and ours.duplicated_tokens <= other.duplicated_tokens, name


@pytest.mark.parametrize("known", [True, False])
def test_a_replica_at_half_speed_is_helped(known: bool) -> None:
    batch = make_workload("micro-2000-200-d4", scale=16, num_requests=240)
    batch = replace(batch, lengths_known=known)
    alone = run_replicas(
        batch, find_arm("batchllm"), SIZES, COSTS, Pool(4, "stealing-off", 0.5), saved(batch)
    )
    helped = served(Pool(4, "ours", 0.5), batch)
    assert helped.pool is not None and alone.pool is not None
    assert helped.pool.thefts > 0 == alone.pool.thefts
    assert helped.pool.num_requests[0] < alone.pool.num_requests[0]
    assert helped.metrics.makespan_s < 0.75 * alone.metrics.makespan_s
    assert helped.pool.idle_ratio < 0.5 * alone.pool.idle_ratio


def test_requests_are_made_when_they_are_handed_over_and_dropped_when_they_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: weakref.WeakSet[Request] = weakref.WeakSet()
    counts: list[int] = []
    make = RequestMaker.make

    def remember(maker: RequestMaker, name: int, *rest: int) -> Request:
        if name % 40 == 0:
            gc.collect()
            counts.append(len(alive))
        request = make(maker, name, *rest)
        alive.add(request)
        return request

    monkeypatch.setattr(RequestMaker, "make", remember)
    sizes = replace(SIZES, max_waiting=4)
    served(Pool(2), make_workload("micro-2000-200-d4", scale=16, num_requests=200), sizes=sizes)
    assert len(counts) == 5
    assert 0 < max(counts) <= 2 * (sizes.max_num_seqs + 4) + 8


def test_more_replicas_than_requests_are_idle() -> None:
    batch = make_workload("micro-2000-200-d4", scale=16, num_requests=3)
    run = served(Pool(5), batch)
    assert run.pool is not None
    assert sorted(run.pool.num_requests)[:2] == [0, 0]
    assert sorted(run.pool.ends_s)[:2] == [0, 0]


def test_a_request_larger_than_the_cache_is_refused() -> None:
    with pytest.raises(UsageError, match="there are 2"):
        served(Pool(2), sizes=replace(SIZES, num_blocks=2))


GRAPHED = replace(COSTS, graphs=Graphs(capture_sizes(64), launch_s=1e-3))


def in_lockstep(num: int, batch: Batch, costs: Roofline = GRAPHED, **fields: Any) -> SimulatedRun:
    pool = Pool(num, "round-robin", lockstep=True, **fields)
    return run_replicas(batch, find_arm("batchllm"), SIZES, costs, pool, saved(batch))


def test_one_rank_in_lockstep_is_one_alone() -> None:
    alone = run_replicas(
        BATCH, find_arm("batchllm"), SIZES, GRAPHED, Pool(1, "round-robin"), saved(BATCH)
    )
    assert figures(in_lockstep(1, BATCH)) == figures(alone)


def test_ranks_in_lockstep_take_the_worst_mode_and_wait_for_the_slowest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against a sum over the steps made here, by the rule as it is written."""
    steps: list[list[StepWork]] = []
    agreed = Roofline.agreed

    def told(costs: Roofline, works: list[StepWork]) -> Any:
        steps.append(list(works))
        return agreed(costs, works)

    monkeypatch.setattr(Roofline, "agreed", told)
    run = in_lockstep(3, BATCH)
    graphs, right_s, modes = GRAPHED.graphs, 0.0, Counter[str]()
    assert graphs is not None
    for works in steps:
        mode = "full"
        if any(work.num_tokens != work.num_requests for work in works):
            mode = "piecewise"
        if any(work.num_tokens > graphs.sizes[-1] for work in works):
            mode = "none"
        modes[mode] += len(works)
        widest = max(work.num_tokens for work in works)
        size = next((size for size in graphs.sizes if size >= widest), 0)
        device = [
            GRAPHED._device_time(work, work.num_tokens if mode == "none" else size)
            for work in works
        ]
        launches = {"full": 0, "piecewise": 4, "none": 12}[mode] * GRAPHED.model.num_layers
        host_s = 1e-3 * (1 + launches)
        right_s += max(
            max(time.total_s - time.step_s - time.requests_s, host_s)
            + time.step_s
            + time.requests_s
            for time in device
        )
    assert run.metrics.makespan_s == pytest.approx(right_s)
    assert run.graph_modes == dict(modes) and len(modes) == 3
    apart = run_replicas(
        BATCH, find_arm("batchllm"), SIZES, GRAPHED, Pool(3, "round-robin"), saved(BATCH)
    )
    assert apart.metrics.makespan_s < run.metrics.makespan_s
    assert run.pool is not None and sum(run.pool.num_requests) == BATCH.num_requests


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_all_requests_end_in_lockstep_wherever_they_are_placed(placement: str) -> None:
    run = run_replicas(
        BATCH, find_arm("batchllm"), SIZES, GRAPHED, Pool(3, placement, 0.5, True), saved(BATCH)
    )
    assert run.pool is not None and sum(run.pool.num_requests) == BATCH.num_requests
    assert run.metrics.output_tokens == BATCH.output_tokens
