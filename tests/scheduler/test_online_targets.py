# SPDX-License-Identifier: Apache-2.0
"""Real schedulers with targets of time, on simulated engines with one step in flight and with two."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_batchllm.scheduler import giving_way, step_sizes
from vllm_batchllm.scheduler.scheduler import PrefixGroupMixin
from vllm_batchllm.simulate.arms import OURS, STOCK, find_arm
from vllm_batchllm.simulate.arrivals import burst_times_s, poisson_times_s
from vllm_batchllm.simulate.online import OnlineRun, run_online
from vllm_batchllm.simulate.setup import SetupOptions, make_setup
from vllm_batchllm.workloads.batch import Batch

ASYNC, SYNC = True, False
"""Two steps in flight, or one."""


def make_batch(lengths: Sequence[tuple[int, int]], seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    prompts = [random.integers(3, 5000, prompt).tolist() for prompt, _ in lengths]
    return Batch("targets", prompts, [output for _, output in lengths])


def serve(
    batch: Batch,
    arrivals_s: Sequence[float],
    options: dict[str, Any] | None,
    is_async: bool = ASYNC,
    priorities: Sequence[int] | None = None,
    **sizes: Any,
) -> OnlineRun:
    setup = make_setup(batch, SetupOptions(device="H100-80GB", **sizes))
    arm = find_arm(STOCK) if options is None else find_arm(OURS, options)
    return run_online(batch, arrivals_s, arm, setup.sizes, setup.costs, priorities, optimal_saved=0)


def p99_tbt_s(run: OnlineRun) -> float:
    assert run.latencies.tbt is not None
    return run.latencies.tbt.p99_s


CHATS = make_batch([(800 + 40 * at, 40) for at in range(40)])
AT_S = poisson_times_s(40, 30.0, 1)


@pytest.mark.parametrize("is_async", [ASYNC, SYNC])
def test_tokens_come_within_the_target(is_async: bool) -> None:
    stock = serve(CHATS, AT_S, None, is_async)
    target_s = p99_tbt_s(stock) / 4
    ours = serve(CHATS, AT_S, {"target_tbt_ms": 1e3 * target_s}, is_async)
    assert p99_tbt_s(ours) <= target_s
    assert ours.counters["num_steps_over_target"] <= 0.02 * ours.metrics.steps
    assert ours.counters["num_steps_beyond_target"] == 0
    assert ours.metrics.makespan_s < 1.2 * stock.metrics.makespan_s
    assert ours.metrics.output_tokens == stock.metrics.output_tokens == CHATS.output_tokens


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of steps; commands that ran in this process may have silenced vLLM's loggers."""
    found: list[str] = []
    logger = logging.getLogger("step_sizes")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger.handlers = [handler]
    monkeypatch.setattr(step_sizes, "logger", logger)
    return found


@pytest.mark.parametrize("is_async", [ASYNC, SYNC])
def test_a_target_that_decodes_alone_miss_is_reported_and_does_not_serve_one_at_a_time(
    is_async: bool, warnings: list[str]
) -> None:
    run = serve(CHATS, AT_S, {"target_tbt_ms": 1.0}, is_async)
    assert run.metrics.output_tokens == CHATS.output_tokens
    assert run.counters["num_steps_beyond_target"] > 0.5 * run.metrics.steps
    assert len(warnings) == 1 and "cannot be kept" in warnings[0]
    assert run.metrics.running_peak > 1


def test_single_requests_first_do_not_keep_others_out() -> None:
    """What one request costs and what a step costs cannot be told apart while there is only one."""
    batch = make_batch([(600, 60)] * 40)
    gentle_s = [at * 0.8 for at in range(10)] + [8.0 + 0.1 * at for at in range(30)]
    run = serve(batch, gentle_s, {"target_tbt_ms": 16.0})
    assert run.metrics.running_peak > 3
    assert p99_tbt_s(run) <= 0.016
    assert run.latencies.ttft.p99_s < 0.2


@pytest.mark.parametrize("target_ms", [None, 20.0])
def test_a_prompt_that_nobody_waits_for_is_computed_at_once(target_ms: float | None) -> None:
    options = {} if target_ms is None else {"target_tbt_ms": target_ms}
    run = serve(make_batch([(16_000, 20)]), [0.0], options)
    assert run.metrics.step_tokens[0] == 16_000
    assert run.metrics.steps == 20


MIXED = make_batch([(512, 24)] * 40 + [(2000, 50)] * 50)
MIXED_CLASSES = [0] * 40 + [1] * 50
MIXED_AT_S = [1 + at for at in burst_times_s(40, 12.0, 10, 2)] + [0.0] * 50


@contextmanager
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Who paused in each step; after each, all who ran still run, in order of nothing lost, and the books are whole."""
    paused: list[int] = []
    schedule = PrefixGroupMixin.schedule

    def look(self: Any, *args: Any) -> Any:
        before = {request.request_id for request in self.running}
        output = schedule(self, *args)
        running = [request.request_id for request in self.running]
        gone = before - set(running)
        assert len(set(running)) == len(running)
        assert gone <= (output.preempted_req_ids or set())
        if self.online is not None and self.online.giving_way is not None:
            paused.append(self.online.giving_way.num_paused)
        if len(paused) % 20 == 1:
            self.waiting.check_integrity()
            self.kv_cache_manager.block_pool.check_integrity()
            assert self.admission is not None
            self.admission.check_integrity(set(running))
        return output

    monkeypatch.setattr(PrefixGroupMixin, "schedule", look)
    yield paused
    monkeypatch.undo()


@pytest.mark.parametrize("is_async", [ASYNC, SYNC])
def test_batch_requests_give_way_and_go_on(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = serve(MIXED, MIXED_AT_S, {}, is_async, MIXED_CLASSES)
    target_ms = 250 * plain.by_class[0].ttft.p99_s
    with looked_at(monkeypatch) as paused:
        run = serve(MIXED, MIXED_AT_S, {"target_ttft_ms": target_ms}, is_async, MIXED_CLASSES)
    assert run.by_class[0].ttft.p99_s < 0.7 * plain.by_class[0].ttft.p99_s
    assert run.metrics.makespan_s < 1.15 * plain.metrics.makespan_s
    assert run.metrics.output_tokens == MIXED.output_tokens
    assert paused[-1] > 0 and run.counters["num_paused_prefills"] == paused[-1]
    assert giving_way.INTERACTIVE_PRIORITY == 0


LENGTHS = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 12)), min_size=1, max_size=12)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=LENGTHS,
    gaps_s=st.lists(st.floats(0, 0.05), min_size=12, max_size=12),
    classes=st.lists(st.integers(-1, 2), min_size=12, max_size=12),
    tbt_ms=st.none() | st.floats(0.01, 1e3),
    ttft_ms=st.none() | st.floats(0.01, 1e3),
    is_async=st.sampled_from([ASYNC, SYNC]),
    kv_blocks=st.integers(24, 80),
)
def test_everything_ends(
    lengths: list[tuple[int, int]],
    gaps_s: list[float],
    classes: list[int],
    tbt_ms: float | None,
    ttft_ms: float | None,
    is_async: bool,
    kv_blocks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = make_batch(lengths)
    wanted = {"target_tbt_ms": tbt_ms, "target_ttft_ms": ttft_ms}
    options = {name: value for name, value in wanted.items() if value is not None}
    num = len(lengths)
    sizes = {"kv_blocks": kv_blocks, "max_num_seqs": 4, "max_num_batched_tokens": 96}
    with looked_at(monkeypatch):
        at_s = np.cumsum(gaps_s[:num]).tolist()
        run = serve(batch, at_s, options, is_async, classes[:num], **sizes)
    assert run.metrics.output_tokens == batch.output_tokens
    assert np.isfinite(run.times.last_s).all()
