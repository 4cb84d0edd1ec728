# SPDX-License-Identifier: Apache-2.0
"""Timing the steps of the real engine, and fitting what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from vllm_batchllm.admission.least_squares import solve_nonnegative
from vllm_batchllm.errors import UsageError
from vllm_batchllm.simulate.calibration import Calibration
from vllm_batchllm.simulate.cost_model import Measured, MeasuredCosts, StepWork
from vllm_batchllm.simulate.work import WorkMeter, held_kv_tokens


class StepTimer:
    """Times the steps of a live scheduler: from one `schedule()` to the next one."""

    def __init__(self, scheduler: Any, clock: Callable[[], float] = time.perf_counter) -> None:
        self.rows: list[tuple[StepWork, float]] = []
        self._scheduler, self._clock = scheduler, clock
        self._meter = WorkMeter()
        self._last: tuple[StepWork, float] | None = None
        self._original = scheduler.schedule
        self._shadowed = vars(scheduler).get("schedule")

    def __enter__(self) -> Self:
        self._scheduler.schedule = self._schedule
        return self

    def __exit__(self, *_: object) -> None:
        self._close(self._clock())
        if self._shadowed is None:
            del self._scheduler.schedule
        else:
            self._scheduler.schedule = self._shadowed

    def _schedule(self, *args: Any, **kwargs: Any) -> Any:
        began_s = self._clock()
        self._close(began_s)
        output = self._original(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            requests = self._scheduler.requests
            names = output.num_scheduled_tokens
            num_sampled = sum(not requests[name].is_prefill_chunk for name in names)
            held = held_kv_tokens(self._scheduler)
            self._last = self._meter.work_of(output, num_sampled, held), began_s
        return output

    def _close(self, now_s: float) -> None:
        if self._last is not None:
            work, began_s = self._last
            self.rows.append((work, now_s - began_s))
            self._last = None


def fit(rows: list[tuple[StepWork, float]]) -> MeasuredCosts:
    """Least squares of the relative error, no cost below zero.

    Raises:
        UsageError: fewer steps than costs.
    """
    names = [field.name for field in fields(MeasuredCosts)]
    if len(rows) < len(names):
        raise UsageError(f"{len(rows)} steps are too few to tell {len(names)} costs from")
    unit = {
        name: Measured(MeasuredCosts(**(dict.fromkeys(names, 0.0) | {name: 1.0}))) for name in names
    }
    work = np.array([[unit[name].time_of(w).total_s for name in names] for w, _ in rows])
    weighted = work / np.array([[spent] for _, spent in rows])
    scale = np.maximum(np.abs(weighted).max(axis=0), 1e-30)
    weighted /= scale
    present = weighted.any(axis=0)
    normal = weighted.T @ weighted + np.diag(~present * 1.0)
    found = solve_nonnegative(normal, weighted.sum(axis=0)) / scale
    return MeasuredCosts(**dict(zip(names, map(float, found), strict=True)))


def calibrate(model: str | None = None, on_batch: Callable[[str], None] = print) -> Calibration:
    """Run a few small batches on the real engine of this machine and fit what a step costs.

    model: folder or name; None takes the random model of `vllm-batchllm bench`. on_batch: told
    which batch is next.

    Raises:
        UsageError: the engine does not start.
    """
    from vllm_batchllm.bench.device import sizes_here
    from vllm_batchllm.bench.engine import (
        EngineSpec,
        build_engine,
        prepare_environment,
        scheduler_of,
    )
    from vllm_batchllm.bench.sampling import sampling_params
    from vllm_batchllm.bench.suite import resolve_model
    from vllm_batchllm.measure.environment import describe_environment
    from vllm_batchllm.workloads.batch import kv_blocks_for
    from vllm_batchllm.workloads.catalog import make_workload

    here = sizes_here(prepare_environment())
    folder, vocab_size = resolve_model(model)
    batches = [
        make_workload(name, num_requests=count, vocab_size=vocab_size)
        for name, count in _BATCHES.items()
    ]
    llm = build_engine(
        EngineSpec(
            model=folder,
            kv_blocks=max(kv_blocks_for(batch, here.block_size) for batch in batches),
            max_model_len=max(batch.max_request_tokens for batch in batches),
            **asdict(here),
        ),
        "stock",
    )
    rows: list[tuple[StepWork, float]] = []
    for number in range(_ROUNDS + 1):  # the first one only warms up
        for batch in batches if number else batches[:1]:
            on_batch(f"{batch.name}, round {number} of {_ROUNDS}" if number else "warming up")
            llm.reset_prefix_cache()
            prompts = [{"prompt_token_ids": prompt} for prompt in batch.prompts]
            with StepTimer(scheduler_of(llm)) as timer:
                llm.generate(prompts, sampling_params(batch), use_tqdm=False)
            rows += timer.rows if number else []
    return Calibration(fit(rows), Path(folder).name, describe_environment(), len(rows))


_ROUNDS = 2
"""How often each batch is run: the speed of a shared machine changes within seconds."""

_BATCHES = {"no-sharing": 96, "decode-heavy": 128, "micro-2000-200-d16": 256, "industry": 192}
"""Small parts of workloads that between them fill steps in every way."""
