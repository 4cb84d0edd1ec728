# SPDX-License-Identifier: Apache-2.0
"""Arrivals over time: times by hand, by ticks, and against the batch mode of the same schedulers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import batch_of

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import DEVICES
from vllm_batchllm.hardware.models import MODELS
from vllm_batchllm.simulate.arms import find_arm
from vllm_batchllm.simulate.cost_model import Roofline, StepTime, StepWork
from vllm_batchllm.simulate.engine import scheduler_class, shared_config
from vllm_batchllm.simulate.graphs import Agreed
from vllm_batchllm.simulate.online import EngineHangs, OnlineRun, run_online
from vllm_batchllm.simulate.online_engine import OnlineEngine
from vllm_batchllm.simulate.ring import build_on, make_requests, sample
from vllm_batchllm.simulate.run import run_arm
from vllm_batchllm.simulate.sizes import EngineSizes
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.catalog import make_workload


@dataclass(frozen=True)
class Whole:
    """A step takes a second, and one more for each `tokens_per_s` tokens of prompts."""

    tokens_per_s: int = 10
    reads_shared_kv_once: bool = False

    def mode_of(self, work: StepWork) -> None:
        return None

    def agreed(self, works: Sequence[StepWork]) -> None:
        return None

    def time_of(self, work: StepWork, together: Agreed | None = None) -> StepTime:
        num_decodes = work.num_requests if not work.prefill_pairs else work.num_requests - 1
        return StepTime(
            step_s=1.0, linear_s=float((work.num_tokens - num_decodes) // self.tokens_per_s)
        )


SYNC = EngineSizes(
    num_blocks=40, block_size=16, max_num_seqs=4, batchllm_max_num_seqs=4, max_num_batched_tokens=64
)
ASYNC = replace(SYNC, is_async=True)
STOCK, OURS = find_arm("stock"), find_arm("batchllm")
A100 = Roofline(DEVICES["A100-80GB"], MODELS["Llama-3.1-8B"])
MIXED = make_workload("mixed", scale=32, num_requests=24)
SMALL = replace(SYNC, num_blocks=60, max_num_seqs=8, max_num_batched_tokens=256)


def prompt(number: int, length: int) -> list[int]:
    return [100 * number + place for place in range(length)]


def gaps_of(run: OnlineRun, request: int) -> list[float]:
    return run.times.gaps_s[run.times.gap_owners == request].tolist()


@pytest.mark.parametrize("sizes", [SYNC, ASYNC])
@pytest.mark.parametrize("arm", [STOCK, OURS])
def test_a_lone_request_waits_for_its_prefill_and_then_for_its_decodes(
    sizes: EngineSizes, arm: Any
) -> None:
    run = run_online(batch_of([prompt(1, 31)], [4]), [5.0], arm, sizes, Whole())
    assert run.times.first_s.tolist() == [5 + 4.0]  # 1 s, and 3 for 31 tokens
    assert gaps_of(run, 0) == [1.0, 1.0, 1.0]
    assert run.metrics.makespan_s == 12 and run.busy_s == 7
    latencies = run.latencies
    assert (latencies.ttft.p50_s, latencies.end_to_end.max_s) == (4.0, 7.0)


@pytest.mark.parametrize(
    ("sizes", "first_s"),
    [
        # Steps of the first request end at 4, 5, 6, ...; the second arrives at 4.5, and its prefill takes 3 s.
        (SYNC, 5 + 3.0),  # starts behind the step that runs
        (ASYNC, 6 + 3.0),  # starts behind the one that is in flight already
    ],
)
def test_who_arrives_in_mid_step_starts_after_what_is_in_flight(
    sizes: EngineSizes, first_s: float
) -> None:
    batch = batch_of([prompt(1, 31), prompt(2, 21)], [9, 1])
    run = run_online(batch, [0.0, 4.5], STOCK, sizes, Whole())
    assert run.times.first_s.tolist() == [4.0, first_s]
    assert max(gaps_of(run, 0)) == 3.0, (
        "the decode that shares a step with the prefill waits for it"
    )


def test_order_in_the_batch_is_not_order_of_arrival() -> None:
    batch = batch_of([prompt(1, 31), prompt(2, 31)], [1, 1])
    run = run_online(batch, [10.0, 0.0], STOCK, SYNC, Whole())
    assert run.times.last_s.tolist() == [14.0, 4.0]
    assert run.busy_ratio == 8 / 14


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("name", ["stock", "batchllm", "lpm", "dfs"])
def test_with_all_at_the_start_it_is_the_batch_mode(name: str, is_async: bool) -> None:
    sizes, arm = replace(SMALL, is_async=is_async), find_arm(name)
    batch = run_arm(MIXED, arm, sizes, A100, 0)
    online = run_online(MIXED, [0.0] * 24, arm, sizes, A100, optimal_saved=0)
    assert online.metrics.makespan_s == batch.metrics.makespan_s
    assert replace(online.metrics, plan_s=0, plan_share=0) == replace(
        batch.metrics, plan_s=0, plan_share=0
    )
    assert online.parts == batch.parts
    assert online.busy_ratio == pytest.approx(1)


def by_ticks(batch: Batch, arrivals: list[int], sizes: EngineSizes) -> list[list[float]]:
    """When each token comes: a device that counts down second by second beside a host that looks at it."""
    scheduler = build_on(scheduler_class(STOCK, sizes), shared_config(batch, STOCK, sizes))
    waiting = sorted(zip(arrivals, range(batch.num_requests), strict=True))
    requests = make_requests(batch, range(batch.num_requests), sizes.block_size)
    ends = {str(place): length for place, length in enumerate(batch.output_lens)}
    meter = OnlineEngine(batch, STOCK, sizes, Whole(), on_tokens=lambda *_: None)
    found: list[list[float]] = [[] for _ in ends]
    flight: deque[list[Any]] = deque()  # seconds left of each step, and the step
    depth = 2 if sizes.is_async else 1
    now, is_blocked = 0, False
    while waiting or flight or scheduler.has_unfinished_requests():
        while True:  # the host, until it has to wait
            if is_blocked and flight[0][0] > 0:
                break
            if is_blocked:
                _, output, made = flight.popleft()
                for outputs in scheduler.update_from_output(output, made).values():
                    for one in outputs.outputs:
                        found[int(one.request_id)] += [now] * len(one.new_token_ids)
                is_blocked = False
            while waiting and waiting[0][0] <= now:
                scheduler.add_request(requests[waiting.pop(0)[1]])
            output = scheduler.schedule()
            made = sample(scheduler, output, ends)
            if output.total_num_scheduled_tokens:
                flight.append([meter.charge(output, made), output, made])
            elif not flight:
                scheduler.update_from_output(output, made)
                break
            is_blocked = len(flight) == depth or not output.total_num_scheduled_tokens
        now += 1
        running = next((step for step in flight if step[0] > 0), None)
        if running is not None:
            running[0] -= 1
    return found


def OnlineEngine_scheduler(sizes: EngineSizes) -> Any:
    from vllm_batchllm.simulate.engine import scheduler_class

    return scheduler_class(STOCK, sizes)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_times_are_those_of_a_simulation_second_by_second(data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 6))
    lengths = data.draw(st.lists(st.integers(2, 90), min_size=num, max_size=num))
    outputs = data.draw(st.lists(st.integers(1, 8), min_size=num, max_size=num))
    arrivals = data.draw(st.lists(st.integers(0, 40), min_size=num, max_size=num))
    sizes = data.draw(st.sampled_from([SYNC, ASYNC]))
    batch = batch_of([prompt(at, length) for at, length in enumerate(lengths)], outputs)
    run = run_online(batch, [float(at) for at in arrivals], STOCK, sizes, Whole())
    expected = by_ticks(batch, arrivals, sizes)
    assert run.times.first_s.tolist() == [times[0] for times in expected]
    assert run.times.last_s.tolist() == [times[-1] for times in expected]
    for request, times in enumerate(expected):
        assert gaps_of(run, request) == np.diff(times).tolist()


@pytest.mark.parametrize("arm", [STOCK, OURS])
def test_a_class_that_goes_first_waits_less(arm: Any) -> None:
    sizes = replace(SYNC, max_num_seqs=1, batchllm_max_num_seqs=1)
    batch = batch_of([prompt(at, 20) for at in range(6)], [3] * 6)
    run = run_online(batch, [0.0] * 6, arm, sizes, Whole(), [1, 1, 1, 1, 0, 0])
    assert set(run.by_class) == {0, 1}
    assert run.by_class[0].end_to_end.max_s < run.by_class[1].end_to_end.p50_s
    same = run_online(batch, [0.0] * 6, arm, sizes, Whole(), [1, 1, 1, 1, 0, 0], policy="fcfs")
    assert same.by_class[0].end_to_end.max_s > same.by_class[1].end_to_end.max_s


def test_percentiles_are_numpys_over_each_class() -> None:
    arrivals = np.random.default_rng(3).uniform(0, 0.2, 24)
    classes = [place % 3 for place in range(24)]
    run = run_online(MIXED, arrivals.tolist(), STOCK, SMALL, A100, classes, policy="fcfs")
    times = run.times
    for one, found in [*run.by_class.items(), (None, run.latencies)]:
        own = [place for place in range(24) if one in (None, classes[place])]
        assert found.num_requests == len(own)
        whole = times.last_s[own] - arrivals[own]
        assert found.end_to_end.p90_s == np.percentile(whole, 90)
        assert found.mean_end_to_end_s == pytest.approx(whole.mean())
        assert found.ttft.p99_s == np.percentile(times.first_s[own] - arrivals[own], 99)
        gaps = np.concatenate([gaps_of(run, place) for place in own])
        assert found.tbt is not None
        assert (found.tbt.p50_s, found.tbt.max_s) == (np.percentile(gaps, 50), gaps.max())
    assert len(times.gaps_s) == MIXED.output_tokens - MIXED.num_requests


class TestRelease:
    """A scheduler that holds requests back says until when."""

    batch = batch_of([prompt(1, 21), prompt(2, 21)], [1, 1])

    def held(self, monkeypatch: pytest.MonkeyPatch, until_s: float, says: bool) -> list[float]:
        """The clock at each `schedule()`; nobody starts before `until_s`."""
        real = OnlineEngine.__init__
        seen: list[float] = []

        def init(engine: OnlineEngine, *args: Any, **options: Any) -> None:
            real(engine, *args, **options)
            scheduler, most = engine.scheduler, engine.scheduler.max_num_scheduled_tokens
            schedule = scheduler.schedule

            def look() -> Any:
                seen.append(engine.clock())
                scheduler.max_num_scheduled_tokens = most if engine.clock() >= until_s else 0
                return schedule()

            scheduler.schedule = look
            if says:
                scheduler.next_release_s = lambda: until_s if engine.clock() < until_s else None

        monkeypatch.setattr(OnlineEngine, "__init__", init)
        return seen

    @pytest.mark.parametrize("sizes", [SYNC, ASYNC])
    def test_wakes_the_host(self, monkeypatch: pytest.MonkeyPatch, sizes: EngineSizes) -> None:
        seen = self.held(monkeypatch, 7.25, says=True)
        run = run_online(self.batch, [1.0, 2.0], STOCK, sizes, Whole())
        assert seen[:3] == [1.0, 2.0, 7.25]
        assert run.times.first_s.tolist() == [7.25 + 5] * 2

    def test_that_never_comes_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held(monkeypatch, 7.25, says=False)
        with pytest.raises(EngineHangs, match="hangs at 2 s: 2 requests lack tokens"):
            run_online(self.batch, [1.0, 2.0], STOCK, SYNC, Whole())


def test_what_cannot_be_run_is_refused_by_name() -> None:
    batch = batch_of([prompt(1, 21), prompt(2, 21)], [1, 1])
    for arrivals, words in (([0.0], "2 requests but 1 arrivals"), ([0.0, -1.0], "arrives at -1 s")):
        with pytest.raises(UsageError, match=words):
            run_online(batch, arrivals, STOCK, SYNC, Whole())
    with pytest.raises(UsageError, match="2 requests but 1 priorities"):
        run_online(batch, [0.0, 0.0], STOCK, SYNC, Whole(), [0])
    for name in ("sorted", "tuned", "longest-first"):
        with pytest.raises(UsageError, match=f"policy '{name}' arranges requests"):
            run_online(batch, [0.0, 0.0], find_arm(name), SYNC, Whole())
    with pytest.raises(UsageError, match="lookahead of 3"):
        run_online(batch, [0.0, 0.0], STOCK, replace(SYNC, max_waiting=3), Whole())
