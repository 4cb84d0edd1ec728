# SPDX-License-Identifier: Apache-2.0
"""One batch, one arm, one engine: feed the real scheduler, step it to the end, keep the books."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_batchllm.measure.metrics import RunInputs, RunMetrics, run_metrics
from vllm_batchllm.measure.recorder import record
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.cost_model import CostModel, StepTime
from vllm_batchllm.simulate.engine import MeterMaker, SimulatedEngine
from vllm_batchllm.simulate.pool import PoolFigures
from vllm_batchllm.simulate.ring import make_requests
from vllm_batchllm.simulate.sizes import EngineSizes, check_fits
from vllm_batchllm.workloads.batch import Batch

OnProgress = Callable[[int], None]
"""Told how many requests have ended since the last call."""


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What one run did, and where its time went.

    metrics: as `vllm-batchllm bench` reports them; `makespan_s` is simulated, `plan_s` measured
    here. parts: seconds by part of a step; they sum up to the makespan. wall_s: of the simulation.
    graph_modes: steps by the graphs that they can replay; empty where graphs are not looked at.
    pool: what several replicas did (`replicas.py`); None for one engine. drain_s: seconds at the end in which nobody waited;
    0 where that was not looked at.
    """

    metrics: RunMetrics
    parts: StepTime
    wall_s: float
    counters: dict[str, Any] = field(default_factory=dict)
    graph_modes: dict[str, int] = field(default_factory=dict)
    pool: PoolFigures | None = None
    drain_s: float = 0.0

    def mean_kv_share(self, num_blocks: int) -> float | None:
        """Mean share of the KV blocks held by requests over the steps; None if not recorded."""
        held = getattr(self.metrics, "step_kv_blocks", ())
        return sum(held) / len(held) / num_blocks if held else None

    def more_figures(self) -> dict[str, Any]:
        """Plain values for the record, of what not every run has."""
        return {} if self.pool is None else {"pool": asdict(self.pool)}


def run_arm(
    batch: Batch,
    arm: Arm,
    sizes: EngineSizes,
    costs: CostModel,
    optimal_saved_tokens: int,
    on_progress: OnProgress | None = None,
    sharing: MeterMaker | None = None,
) -> SimulatedRun:
    """Serve `batch` by `arm`; deterministic but for `plan_s` and `wall_s`.

    sharing: makes of the scheduler what counts shared KV; None for that of the costs.

    Raises:
        UsageError: a request can never fit into the KV blocks.
    """
    check_fits(batch, sizes)
    began_s = time.perf_counter()
    engine = SimulatedEngine(batch, arm, sizes, costs, sharing=sharing)
    order = arm.input_order(batch)
    engine.ends = {str(place): batch.output_lens[index] for place, index in enumerate(order)}
    requests = deque(make_requests(batch, order, sizes.block_size))
    with record(engine.scheduler) as steps:
        filled_s = _serve(engine, requests, sizes.max_waiting, on_progress)
    inputs = RunInputs(
        batch.num_requests, batch.prompt_tokens, batch.output_tokens, optimal_saved_tokens
    )
    snapshot = getattr(engine.scheduler, "batchllm_snapshot", dict)
    return SimulatedRun(
        metrics=run_metrics(arm.name, 0, inputs, steps, engine.clock.now_s),
        parts=engine.parts,
        wall_s=time.perf_counter() - began_s,
        counters={**snapshot(), "watermark": arm.watermark},
        graph_modes=dict(engine.modes),
        drain_s=engine.clock.now_s - filled_s,
    )


def _serve(
    engine: SimulatedEngine,
    requests: deque[Any],
    max_waiting: int | None,
    on_progress: OnProgress | None,
) -> float:
    """Until all have ended; as many wait at any time as may. When the last of them waited, seconds."""
    filled_s = 0.0
    while requests or engine.has_work():
        while requests and (max_waiting is None or engine.num_waiting < max_waiting):
            engine.scheduler.add_request(requests.popleft())
        ended = engine.step()
        if requests or engine.num_waiting:
            filled_s = engine.clock.now_s
        if on_progress and ended:
            on_progress(len(ended))
    return filled_s
