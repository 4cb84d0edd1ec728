# SPDX-License-Identifier: Apache-2.0
"""Held releases on real schedulers, sync and async, with a clock of the test's."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_engine import make_request, make_scheduler, make_vllm_config
from simulated import batch_of
from vllm.v1.request import RequestStatus

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.config import BatchLLMConfig
from vllm_batchllm.hardware.devices import DEVICES
from vllm_batchllm.hardware.models import MODELS
from vllm_batchllm.scheduler import device_power
from vllm_batchllm.scheduler.device_power import DevicePower, power_of
from vllm_batchllm.scheduler.holding_queue import HoldingQueue
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.scheduler.scheduler import leaf_for
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.cost_model import Roofline
from vllm_batchllm.simulate.engine import Clock
from vllm_batchllm.simulate.online import OnlineRun, run_online
from vllm_batchllm.simulate.ring import sample
from vllm_batchllm.simulate.sizes import EngineSizes

SIZES = EngineSizes(
    num_blocks=400, block_size=16, max_num_seqs=16, batchllm_max_num_seqs=16, max_num_batched_tokens=2048
)  # fmt: skip
A100 = Roofline(DEVICES["A100-80GB"], MODELS["Llama-3.1-8B"])
POWER = {"power_weight": 1.0, "idle_power_w": 50.0, "busy_power_w": 400.0}
OPTIONS = {
    "one-shot": {"release": "one-shot", **POWER},
    "groups": {"release": "groups"},
    "all": {"release": "all", "one_shot_tokens": 2, **POWER},
}
both = pytest.mark.parametrize("is_async", [False, True])


class Live:
    """A scheduler, stepped by hand on a clock that stands still."""

    def __init__(self, llama: str, is_async: bool = False, **options: Any) -> None:
        caching = options.pop("enable_prefix_caching", True)
        self.clock = Clock(100.0)
        config = make_vllm_config(
            llama, async_scheduling=is_async, enable_prefix_caching=caching, options=options or None
        )
        self.scheduler = make_scheduler(leaf_for(is_async), config, Environment("cpu", self.clock))
        self.ends: dict[str, int] = {}

    @property
    def holder(self) -> Any:
        return self.scheduler.online.releases._one_shot

    def add(self, name: str, max_tokens: int = 1, prompt: list[int] | None = None) -> Any:
        request = make_request(name, prompt or [1, 2, 3], max_tokens=max_tokens)
        self.ends[name] = max_tokens
        self.scheduler.add_request(request)
        return request

    def step(self) -> Any:
        output = self.scheduler.schedule()
        made = sample(self.scheduler, output, self.ends)
        self.clock.now_s += 0.01 if output.total_num_scheduled_tokens else 0.0
        self.scheduler.update_from_output(output, made)
        return output

    def wait_for(self, num_requests: int) -> None:
        """One-shot requests wait for so many from now on."""
        table = SimpleNamespace(
            saved_w=0.0, batch_of=lambda count: count if count >= num_requests else 0
        )
        self.holder.table = lambda now_s: table


def stream(num: int = 60) -> tuple[Any, list[float]]:
    """Documents with questions, one-shot requests among them, as they come."""
    draw = np.random.default_rng(4)
    heads = [draw.integers(0, 1000, 200).tolist() for _ in range(8)]
    prompts = [
        heads[draw.integers(8)] + draw.integers(0, 1000, draw.integers(5, 40)).tolist()
        for _ in range(num)
    ]
    outputs = draw.choice([1, 1, 2, 6], num).tolist()
    return batch_of(prompts, outputs), np.cumsum(draw.exponential(0.02, num)).tolist()


def run(options: dict[str, Any], is_async: bool, **sizes: Any) -> OnlineRun:
    batch, times_s = stream()
    arm = Arm("ours", "batchllm", options=options)
    return run_online(batch, times_s, arm, replace(SIZES, is_async=is_async, **sizes), A100)


@both
@pytest.mark.parametrize("release", OPTIONS)
def test_all_end_and_nobody_waits_longer_than_the_bound_beyond_what_they_would_have(
    release: str, is_async: bool
) -> None:
    held = run(OPTIONS[release] | {"max_hold_s": 0.3}, is_async)
    plain = run({}, is_async)
    assert held.latencies.num_requests == 60 and held.counters["num_held"] == 0
    assert held.latencies.ttft.max_s < plain.latencies.ttft.max_s + 0.3 + 0.2
    if release != "groups":
        assert held.counters["num_held_ever"] > 20
        assert 1 <= held.counters["num_releases"] <= held.counters["num_held_ever"]
        assert 0 <= held.counters["hold_s"] <= 0.3 * held.counters["num_held_ever"] + 1


@both
def test_one_shot_requests_are_held_without_a_prefix_cache_too(is_async: bool) -> None:
    held = run(OPTIONS["one-shot"], is_async, prefix_caching=False)
    assert held.latencies.num_requests == 60 and held.counters["num_held_ever"] > 20


def test_groups_without_a_prefix_cache_are_refused_by_name(llama: str) -> None:
    for release in ("groups", "all"):
        with pytest.raises(ValueError, match=f"'release' = '{release}' holds prefix groups"):
            Live(llama, release=release, enable_prefix_caching=False)


@both
def test_without_the_option_the_queue_is_ours_itself(llama: str, is_async: bool) -> None:
    live = Live(llama, is_async)
    assert type(live.scheduler.waiting) is PrefixGroupQueue and live.scheduler.online is None
    assert type(Live(llama, is_async, target_tbt_ms=50).scheduler.waiting) is PrefixGroupQueue
    assert type(Live(llama, is_async, release="all").scheduler.waiting) is HoldingQueue


def test_the_queue_counts_who_is_held_and_shows_only_who_waits(llama: str) -> None:
    live = Live(llama, release="one-shot")
    live.wait_for(3)
    first, queue = live.add("a"), live.scheduler.waiting
    live.step()
    assert len(queue) == 1 and not queue and first in queue and list(queue) == [first]
    assert live.scheduler.has_unfinished_requests()
    other = live.add("long", max_tokens=5)
    assert queue and queue.peek_request() is other and list(queue) == [other, first]
    queue.remove_requests([first, other])
    assert len(queue) == 0 and first not in queue and other not in queue
    with pytest.raises(ValueError):
        queue.remove_request(first)


def test_a_batch_goes_when_the_table_says_so(llama: str) -> None:
    live = Live(llama, release="one-shot")
    live.wait_for(3)
    for name in "ab":
        live.add(name)
        assert live.step().total_num_scheduled_tokens == 0
    live.add("c")
    assert set(live.step().num_scheduled_tokens) == {"a", "b", "c"}
    assert not live.scheduler.has_unfinished_requests()


def test_a_request_that_runs_is_never_delayed_and_releases_everybody(llama: str) -> None:
    live = Live(llama, release="one-shot")
    live.wait_for(100)
    live.add("long", max_tokens=6)
    assert live.step().total_num_scheduled_tokens
    live.add("short")
    assert set(live.step().num_scheduled_tokens) == {"long", "short"}
    for _ in range(4):
        assert "long" in live.step().num_scheduled_tokens
    assert not live.scheduler.has_unfinished_requests()


@both
def test_aborted_while_held_nothing_is_left_behind(llama: str, is_async: bool) -> None:
    live = Live(llama, is_async, release="all", max_hold_s=5.0)
    live.wait_for(100)
    held = [live.add(name) for name in "abcd"]
    live.step()
    live.scheduler.finish_requests(["b", "d"], RequestStatus.FINISHED_ABORTED)
    assert list(live.scheduler.waiting) == [held[0], held[2]]
    live.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert not live.scheduler.has_unfinished_requests() and not live.scheduler.requests
    assert live.scheduler.next_release_s() is None
    live.clock.now_s += 10.0
    assert live.step().total_num_scheduled_tokens == 0
    pool = live.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def test_groups_are_held_and_an_aborted_first_lets_the_others_go_on(llama: str) -> None:
    live = Live(llama, release="groups", max_hold_s=1.0)
    groups = live.scheduler.online.releases._groups
    groups.value.pays = lambda token_s, num_present: True
    live.add("long", max_tokens=9)  # somebody runs: an idle engine holds nobody
    live.step()
    document = list(range(200))
    for number, name in enumerate("abc"):
        live.add(name, 2, [*document, 500 + number])
    assert len(groups.held) == 3 and len(live.scheduler.waiting) == 3
    live.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    groups.check_integrity()
    assert set(live.step().num_scheduled_tokens) == {"long"}
    live.clock.now_s += 1.0
    assert {"b", "c"} <= set(live.step().num_scheduled_tokens)
    assert live.scheduler.batchllm_snapshot()["num_releases"] == 1


@pytest.mark.parametrize("jump_s", [-1e6, 1e6])
def test_a_clock_that_jumps_holds_nobody_for_ever(llama: str, jump_s: float) -> None:
    live = Live(llama, release="one-shot", max_hold_s=0.5)
    live.wait_for(100)
    live.add("a")
    live.step()
    live.clock.now_s += jump_s
    live.step()
    due_s = live.scheduler.next_release_s()
    if jump_s < 0:
        assert due_s is not None and due_s <= live.clock.now_s + 0.5
        live.clock.now_s = due_s
        live.step()
    assert not live.scheduler.has_unfinished_requests()


def test_service_times_are_learnt_from_batches_that_ran_alone(llama: str) -> None:
    live = Live(llama, release="one-shot")
    for name in "abc":
        live.add(name)
    live.step()
    assert live.holder.services._num_batches == 1
    live.add("long", max_tokens=3)
    live.add("d")
    for _ in range(4):
        live.step()
    assert live.holder.services._num_batches == 1, "other work was beside it"


def test_power_that_the_device_does_not_say_is_refused_by_name(llama: str) -> None:
    with pytest.raises(ValueError, match=r"'power_weight' = 2 needs the power.*'idle_power_w'"):
        Live(llama, release="one-shot", power_weight=2.0)


def test_power_is_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: closed.append(1),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetPowerUsage=lambda handle: 71_000,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
    )
    monkeypatch.setattr(device_power, "import_pynvml", lambda: nvml)
    config = BatchLLMConfig.parse({"release": "one-shot", "power_weight": 1.0})
    assert power_of(config) == DevicePower(71.0, 700.0) and closed == [1]
    assert power_of(BatchLLMConfig()) is None
    nvml.nvmlDeviceGetPowerUsage = lambda handle: 800_000
    with pytest.raises(ValueError, match="800 W of at most 700 W"):
        power_of(config)
    assert closed == [1, 1] and sys.modules.get("pynvml") is not nvml


def test_a_batch_that_is_aborted_holds_nobody_up(llama: str) -> None:
    """No output of a step comes for it; those who wait behind it are released all the same."""
    live = Live(llama, release="one-shot", max_hold_s=100.0)
    live.add("a")
    live.scheduler.schedule()
    live.add("b")
    assert len(live.holder.held) == 1
    live.scheduler.finish_requests(["a"], RequestStatus.FINISHED_ABORTED)
    assert live.scheduler.schedule().num_scheduled_tokens.keys() == {"b"}


@pytest.mark.parametrize(
    ("kind", "measures"), [("one-shot", False), ("groups", True), ("all", True)]
)
def test_steps_are_measured_only_where_something_asks_what_they_cost(
    llama: str, kind: str, measures: bool
) -> None:
    live = Live(llama, **OPTIONS[kind])
    for number in range(3):
        live.add(str(number))
    most = live.scheduler.max_num_scheduled_tokens
    for _ in range(3):
        live.step()
    sizer = live.scheduler.online._sizer
    assert (sizer is not None) == measures
    assert sizer is None or sizer._target.times.num_steps > 0
    assert live.scheduler.max_num_scheduled_tokens == most
    assert live.scheduler.batchllm_snapshot()["num_steps_over_target"] == 0
