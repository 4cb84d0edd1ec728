# SPDX-License-Identifier: Apache-2.0
"""What a step costs: every part against figures computed by hand, and what must always hold."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import DEVICES, Device
from vllm_batchllm.hardware.models import MODELS, ModelShape
from vllm_batchllm.simulate.cost_model import (
    PUBLISHED,
    Constants,
    Measured,
    MeasuredCosts,
    Roofline,
    StepTime,
    StepWork,
)
from vllm_batchllm.simulate.shared_kv import PREFIX_SPEED, KVReading, SharedWork, launches_s

# 1,000 operations and 100 bytes a second: one byte costs as much as ten operations.
DEVICE = Device("d", 1e9, 1000.0, 100.0, 50.0, 8, 64, "made up")
# Weights: 2 layers of 4 * 2 * (2 * 2 + 2 * 1) + 3 * 4 * 8 = 144; head 10 * 4 = 40, 80 bytes.
MODEL = ModelShape("m", 2, 4, 8, 2, 1, 2, 10)
PLAIN = Constants(efficiency=0.5, step_s=0.25, request_s=0.125)
COSTS = Roofline(DEVICE, MODEL, PLAIN)
ONE = StepWork(num_tokens=1, num_requests=1, num_sampled=1)

counts = st.integers(0, 10**6)
works = st.builds(StepWork, counts, counts, counts, counts, counts, counts, counts)
models = st.builds(
    Roofline,
    st.sampled_from(list(DEVICES.values())),
    st.sampled_from(list(MODELS.values())),
    st.builds(Constants, st.floats(0.1, 1), st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["apart", "cached", "once", "once-slow"]),
)
measured = st.builds(Measured, st.builds(MeasuredCosts, *[st.floats(0, 1)] * 6))


def test_few_tokens_cost_the_reading_of_the_weights() -> None:
    assert MODEL.layer_weights == 2 * 144
    assert COSTS.time_of(ONE).linear_s == 2 * 144 * 2 / 100 / 0.5
    assert COSTS.time_of(replace(ONE, num_tokens=10)).linear_s == 2 * 144 * 2 / 100 / 0.5


def test_many_tokens_cost_the_computing() -> None:
    # 2 operations for each of 288 weights and each token.
    assert COSTS.time_of(replace(ONE, num_tokens=11)).linear_s == pytest.approx(
        2 * 288 * 11 / 1000 / 0.5
    )


def test_the_head_is_read_only_where_something_is_sampled() -> None:
    assert COSTS.time_of(replace(ONE, num_sampled=0)).head_s == 0
    assert COSTS.time_of(ONE).head_s == 80 / 100 / 0.5
    assert COSTS.time_of(replace(ONE, num_sampled=20)).head_s == 2 * 40 * 20 / 1000 / 0.5


def test_prompt_attention_takes_the_longer_of_pairs_and_kv() -> None:
    # 4 operations * 2 layers * 2 heads * 2 a pair; 2 layers * (key, value) * 1 head * 2 * 2 bytes.
    by_pairs = COSTS.time_of(replace(ONE, prefill_pairs=100, prefill_kv_tokens=1))
    assert by_pairs.prefill_attention_s == pytest.approx(32 * 100 / 1000 / 0.5)
    by_kv = COSTS.time_of(replace(ONE, prefill_pairs=1, prefill_kv_tokens=100))
    assert by_kv.prefill_attention_s == pytest.approx(16 * 100 / 100 / 0.5)


def test_output_attention_reads_kv_once_for_each_request() -> None:
    work = replace(ONE, decode_kv_tokens=100, held_kv_tokens=30)
    assert COSTS.time_of(work).decode_attention_s == pytest.approx(16 * 100 / 100 / 0.5)


def test_what_several_share_is_read_apart_from_the_cache_or_once() -> None:
    shared = SharedWork(node_tokens=20, tokens_saved=60, partial_rows=4)
    work = replace(ONE, decode_kv_tokens=100, held_kv_tokens=30, shared=shared)
    device = replace(COSTS.device, cache_gain=2.5)

    def tokens(reading: KVReading) -> float:
        spent = replace(COSTS, device=device, kv_reading=reading).time_of(work).decode_attention_s
        spent -= launches_s(reading, work, COSTS.model)
        return spent * 100 * 0.5 / 16

    # A partial result: 2 layers, 2 heads of 2 and its log-sum-exp, 4 bytes written and read; 16 bytes are a token's KV.
    partials = 4 * 2 * 4 * 2 * 2 * 3 / 16
    assert tokens("apart") == pytest.approx(100)
    assert tokens("cached") == pytest.approx(100 / 2.5)
    assert tokens("once") == pytest.approx(100 - 60 + partials)
    assert tokens("once-slow") == pytest.approx(40 + partials + 20 * (1 / PREFIX_SPEED - 1))
    device = replace(device, cache_gain=10)
    assert tokens("cached") == pytest.approx(30)


def test_steps_without_decodes_launch_nothing_more() -> None:
    prefill = replace(ONE, num_tokens=9, prefill_pairs=45, prefill_kv_tokens=9)
    assert replace(COSTS, kv_reading="once").time_of(prefill) == COSTS.time_of(prefill)


def test_fixed_costs_are_added_once_a_step_and_once_a_request() -> None:
    spent = COSTS.time_of(replace(ONE, num_requests=3))
    assert (spent.step_s, spent.requests_s) == (0.25, 0.375)


def test_devices_divide_the_work_and_talk_to_each_other() -> None:
    two = replace(COSTS, tensor_parallel=2)
    work = replace(ONE, num_tokens=100, prefill_pairs=50)
    one, both = COSTS.time_of(work), two.time_of(work)
    assert both.linear_s == one.linear_s / 2
    assert both.prefill_attention_s == one.prefill_attention_s / 2
    # 2 all-reduces in each of 2 layers; each moves 2 (n - 1) / n of 100 * 4 values of 2 bytes.
    assert (one.communication_s, both.communication_s) == (0, 4 * 800 / 50)


def test_key_value_heads_that_cannot_be_divided_are_read_by_every_device() -> None:
    work = replace(ONE, decode_kv_tokens=100)  # the model has one key-value head
    both = replace(COSTS, tensor_parallel=2).time_of(work)
    assert both.decode_attention_s == COSTS.time_of(work).decode_attention_s


def test_the_total_is_the_sum_of_the_parts() -> None:
    spent = COSTS.time_of(StepWork(20, 3, 2, 100, 40, 50, 30))
    assert spent.total_s == pytest.approx(sum(getattr(spent, f.name) for f in fields(spent)))
    total = StepTime()
    total.add(spent)
    total.add(spent)
    assert total.total_s == pytest.approx(2 * spent.total_s)


@given(
    models | measured,
    works,
    st.sampled_from([f.name for f in fields(StepWork) if f.name != "shared"]),
    counts,
)
def test_more_work_never_takes_less_time(
    costs: Roofline | Measured, work: StepWork, field: str, more: int
) -> None:
    if isinstance(costs, Measured):  # a sampled token is one of those that go through the model
        more = more if field != "num_sampled" else 0
    larger = replace(work, **{field: getattr(work, field) + more})
    assert costs.time_of(larger).total_s >= costs.time_of(work).total_s * (1 - 1e-12)


@given(models, works)
def test_the_cache_never_makes_it_dearer(costs: Roofline, work: StepWork) -> None:
    apart, cached = (replace(costs, kv_reading=reading) for reading in ("apart", "cached"))
    assert cached.time_of(work).total_s <= apart.time_of(work).total_s


@given(models, works)
def test_only_several_devices_communicate(costs: Roofline, work: StepWork) -> None:
    communicates = costs.time_of(work).communication_s > 0
    assert communicates == (costs.tensor_parallel > 1 and work.num_tokens > 0)


def test_measured_costs_are_linear() -> None:
    costs = Measured(MeasuredCosts(1, 0.5, 0.25, kv_s=0.125, held_s=2, pair_s=0.0625))
    spent = costs.time_of(StepWork(10, 4, 3, 32, 99, 8, 5))
    assert (spent.step_s, spent.linear_s, spent.requests_s) == (1, 7 * 0.5, 3 * 0.25)
    assert spent.decode_attention_s == 8 * 0.125 + 5 * 2
    assert spent.prefill_attention_s == 2
    assert spent.total_s == 1 + 3.5 + 0.75 + 11 + 2
    assert costs.time_of(StepWork(2, 4, 3)).linear_s == 0


def test_decodes_read_no_more_than_they_attend_to() -> None:
    costs = Measured(MeasuredCosts(0, 0, held_s=1))
    assert costs.time_of(StepWork(1, 1, 1, decode_kv_tokens=3, held_kv_tokens=9)).total_s == 3
    assert costs.time_of(StepWork(9, 1, 1, 45, 9, held_kv_tokens=9)).total_s == 0


@pytest.mark.parametrize("efficiency", [0.0, -0.1, 1.1, float("nan")])
def test_an_impossible_efficiency_is_refused(efficiency: float) -> None:
    with pytest.raises(UsageError, match="efficiency must be above 0 and at most 1"):
        replace(PUBLISHED, efficiency=efficiency)


@pytest.mark.parametrize("field", ["step_s", "request_s"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_fixed_costs_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{field} must be 0 seconds or more"):
        replace(PUBLISHED, **{field: value})
