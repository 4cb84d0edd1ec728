# SPDX-License-Identifier: Apache-2.0
"""One batch on several replicas: real schedulers in one process, and the figures of all together."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from vllm_batchllm.measure.metrics import RunInputs, run_metrics
from vllm_batchllm.measure.recorder import StepRecord, record
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.cost_model import CostModel, StepTime
from vllm_batchllm.simulate.engine import SimulatedEngine, shared_config
from vllm_batchllm.simulate.feeds import Feed, FixedFeed, PlannedFeed
from vllm_batchllm.simulate.placement import FIXED, OURS_PLACED, prefix_order, shared_before
from vllm_batchllm.simulate.pool import Pool, PoolFigures, Window
from vllm_batchllm.simulate.ring import RequestMaker
from vllm_batchllm.simulate.run import OnProgress, SimulatedRun
from vllm_batchllm.simulate.serving import LockstepServing, Replica, Serving
from vllm_batchllm.simulate.sizes import EngineSizes, check_fits
from vllm_batchllm.workloads.batch import Batch


def run_replicas(
    batch: Batch,
    arm: Arm,
    sizes: EngineSizes,
    costs: CostModel,
    pool: Pool,
    optimal_saved: int,
    on_progress: OnProgress | None = None,
) -> SimulatedRun:
    """Serve `batch` by `arm` on every replica of `pool`; deterministic but for `plan_s` and `wall_s`.

    metrics: of all replicas together; `makespan_s` is the latest end, `plan_s` the mean, a step that of one replica, in order of
    time. parts: the mean of the replicas; what they lack to the makespan is idle time.

    Args:
        optimal_saved: prompt tokens that one replica with the whole batch could save at best.

    Raises:
        UsageError: a request can never fit into the KV blocks.
    """
    check_fits(batch, sizes)
    began_s = time.perf_counter()
    planned = None if pool.placement in FIXED else PlannedFeed(batch, costs, pool, sizes.block_size)
    feed: Feed = FixedFeed(batch, arm, pool) if planned is None else planned
    window = Window.of(sizes, arm, _num_sharing(pool), _new_tokens(batch, planned, sizes))
    steps = StepRecord()
    with ExitStack() as stack:
        stack.enter_context(_left_alone_by_the_collector())
        replicas = _make_replicas(batch, arm, sizes, costs, pool, feed)
        for replica in replicas:
            stack.enter_context(record(replica.engine.scheduler, into=steps))
        maker = RequestMaker(batch, sizes.block_size)
        serving = LockstepServing if pool.lockstep else Serving
        serving(batch, feed, window, maker, replicas, costs, on_progress).run()
    steps.plan_s /= pool.num_replicas
    inputs = RunInputs(batch.num_requests, batch.prompt_tokens, batch.output_tokens, optimal_saved)
    makespan_s = max(replica.now_s for replica in replicas)
    modes = sum((replica.engine.modes for replica in replicas), Counter[str]())
    return SimulatedRun(
        metrics=run_metrics(pool.row_of(arm), 0, inputs, steps, makespan_s),
        parts=_mean_parts(replicas),
        wall_s=time.perf_counter() - began_s,
        counters={"watermark": arm.watermark},
        graph_modes=dict(modes),
        pool=_figures(batch, sizes, pool, planned, replicas, optimal_saved),
    )


def _make_replicas(
    batch: Batch, arm: Arm, sizes: EngineSizes, costs: CostModel, pool: Pool, feed: Feed
) -> list[Replica]:
    config = shared_config(batch, arm, sizes)
    replicas = []
    for number, speed in enumerate(pool.speeds):
        told = partial(feed.worked, number)
        engine = SimulatedEngine(batch, arm, sizes, costs, config=config, speed=speed, on_work=told)
        replicas.append(Replica(number, engine))
        gc.freeze()  # an engine is as many objects as it has KV blocks, and they stay
    return replicas


def _num_sharing(pool: Pool) -> int:
    return pool.num_replicas if pool.placement == OURS_PLACED else 0


def _new_tokens(batch: Batch, planned: PlannedFeed | None, sizes: EngineSizes) -> float:
    if planned is not None:
        return planned.new_tokens
    order = prefix_order(batch.prompts)
    hits = shared_before(batch.prompts, order, sizes.block_size, batch.limits)
    return (batch.prompt_tokens - int(hits.sum())) / batch.num_requests


@contextmanager
def _left_alone_by_the_collector() -> Iterator[None]:
    """Python's collector does not look at what is there now, nor at what is frozen later: prompts of a large batch are some hundred
    million references, which each of its full rounds would follow."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _mean_parts(replicas: list[Replica]) -> StepTime:
    total = StepTime()
    for replica in replicas:
        total.add(replica.engine.parts)
    return total.divided(len(replicas))


def _figures(
    batch: Batch,
    sizes: EngineSizes,
    pool: Pool,
    planned: PlannedFeed | None,
    replicas: list[Replica],
    optimal_saved: int,
) -> PoolFigures:
    saved = sum(_optimal_saved(batch, replica.handed, sizes.block_size) for replica in replicas)
    ends_s = [replica.now_s for replica in replicas]
    busy_s = math.fsum(replica.busy_s for replica in replicas)
    return PoolFigures(
        num_replicas=pool.num_replicas,
        placement=pool.placement,
        slowest_speed=pool.slowest_speed,
        duplicated_tokens=optimal_saved - saved,
        optimal_duplicated_tokens=None if planned is None else planned.cheapest_tokens(),
        thefts=0 if planned is None else planned.assignment.num_stolen,
        idle_ratio=max(1 - busy_s / (len(replicas) * max(ends_s)), 0.0),
        ends_s=tuple(ends_s),
        num_requests=tuple(len(replica.handed) for replica in replicas),
    )


def _optimal_saved(batch: Batch, places: list[int], block_size: int) -> int:
    """Prompt tokens that a replica with these requests can save at best."""
    limits = batch.limits
    return optimal_saved_tokens(
        [batch.prompts[place] for place in places],
        block_size,
        limits=None if limits is None else [limits[place] for place in places],
    )
