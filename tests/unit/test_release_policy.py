# SPDX-License-Identifier: Apache-2.0
"""The best release policy, held against all policies, against simulation and against published figures."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from release_oracle import all_tables, costs_of

from vllm_batchllm.admission.release_model import MAX_STATES
from vllm_batchllm.admission.release_policy import (
    ReleasePolicy,
    always,
    evaluate,
    greedy,
    wait_for,
)
from vllm_batchllm.admission.release_server import BatchServer
from vllm_batchllm.admission.release_simulation import TimeOut, simulate_release
from vllm_batchllm.admission.release_solver import solve, solve_by_values

SERVICE_MS, ENERGY_MJ, MAX_BATCH = (1.0524, 0.3051), (19.603, 19.899), 32
"""GoogLeNet on a P4 (arXiv 2501.02181, section VI)."""


def googlenet(load: float, w_power: float) -> BatchServer:
    rate = 1e3 * load * MAX_BATCH / (SERVICE_MS[0] + SERVICE_MS[1] * MAX_BATCH)
    return BatchServer.affine(rate, SERVICE_MS, ENERGY_MJ, MAX_BATCH, w_power=w_power)


REFERENCE = [
    # load, w_power, cost, response, power, control limit, greedy, batches of 8, of 32
    (0.3, 0, 2.400, 2.40, 28.27, 1, 2.40, 7.45, 28.3),
    (0.3, 1, 25.99, 4.06, 21.96, 4, 30.67, 27.30, 46.5),
    (0.3, 3, 66.95, 7.45, 19.84, 8, 87.22, 67.01, 83.0),
    (0.7, 0, 4.954, 4.97, 47.96, 2, 4.95, 6.89, 18.3),
    (0.7, 1, 51.71, 6.09, 45.59, 8, 52.99, 53.16, 60.8),
    (0.7, 3, 140.83, 9.29, 43.83, 15, 149.08, 145.71, 145.69),
]


@pytest.mark.parametrize("row", REFERENCE, ids=lambda row: f"load {row[0]}, w_power {row[1]}")
def test_a_second_implementation_has_the_same_table(row: tuple[float, ...]) -> None:
    load, w_power, cost, response_ms, power_w, limit, *baselines = row
    server = googlenet(load, w_power)
    policy = solve(server, 128, 100.0)
    assert policy.control_limit == limit
    assert policy.cost == pytest.approx(cost, rel=0.002)
    assert policy.mean_response_ms == pytest.approx(response_ms, rel=0.005)
    assert policy.power_w == pytest.approx(power_w, rel=0.005)
    rules = [greedy(server), always(server, 8), always(server, 32)]
    assert [rule.cost for rule in rules] == pytest.approx(baselines, rel=0.008)


@pytest.mark.parametrize(("load", "w_power"), [(0.3, 1), (0.7, 3), (0.9, 1)])
def test_simulation_comes_to_the_exact_figures(load: float, w_power: float) -> None:
    server = googlenet(load, w_power)
    for policy in (solve(server), greedy(server), wait_for(server, 16)):
        found = simulate_release(server, policy, 4e5, seed=1)
        slack = 1.6  # of a 95 % interval: 99.8 % of runs are within
        assert abs(found.cost - policy.cost) < slack * found.cost_error < 0.02 * policy.cost
        assert abs(found.mean_response_ms - policy.mean_response_ms) < slack * found.response_error
        assert abs(found.power_w - policy.power_w) < slack * found.power_error


positive = st.floats(0.1, 10.0)


@st.composite
def small_servers(draw: st.DrawFn) -> BatchServer:
    """Up to 3 in a batch, in times that need not grow evenly; loads of up to 0.95."""
    size = draw(st.integers(1, 3))
    service = tuple(np.cumsum(draw(st.lists(positive, min_size=size, max_size=size))).tolist())
    energy = tuple(draw(st.lists(st.floats(0.0, 30.0), min_size=size, max_size=size)))
    min_batch = draw(st.integers(1, size))
    weights = draw(st.sampled_from([(1.0, 0.0), (1.0, 1.0), (0.2, 3.0), (1.0, 20.0)]))
    server = BatchServer(1.0, service, energy, min_batch, *weights)
    return replace(server, arrival_rate=draw(st.floats(0.05, 0.95)) * server.max_rate)


@settings(max_examples=200)
@given(small_servers(), st.integers(3, 6), st.sampled_from([0.0, 1.0, 100.0]))
def test_no_policy_at_all_is_better(server: BatchServer, num_states: int, overflow: float) -> None:
    tables = all_tables(server, num_states)
    costs = costs_of(server, tables, num_states, overflow)
    policy = solve(server, num_states, overflow)
    assert policy.model_cost == pytest.approx(costs.min(), rel=1e-9)
    best = [table[:-1] for table, cost in zip(tables, costs, strict=True)
            if cost <= costs.min() * (1 + 1e-9)]  # fmt: skip
    assert policy.batches in best


@settings(max_examples=60)
@given(small_servers(), st.integers(3, 30))
def test_value_iteration_finds_the_same(server: BatchServer, num_states: int) -> None:
    policy = solve(server, num_states)
    found = solve_by_values(server, num_states, tolerance=1e-8)
    assert found.is_settled
    assert found.model_cost == pytest.approx(policy.model_cost, rel=1e-7)
    assert found.policy.model_cost == pytest.approx(policy.model_cost, rel=1e-7)


@settings(max_examples=100)
@given(small_servers(), st.integers(3, 40))
def test_what_every_policy_keeps(server: BatchServer, num_states: int) -> None:
    policy = solve(server, num_states)
    assert policy.num_states == num_states
    for number in range(num_states + 10):
        batch = policy.batch_of(number)
        assert batch == 0 or server.min_batch <= batch <= min(number, server.max_batch)
    assert policy.batch_of(num_states + 1) == policy.batch_of(10**9) == server.fastest_batch
    served = [number for number in range(num_states + 1) if policy.batch_of(number)]
    assert policy.control_limit == min(served, default=num_states + 1)
    assert policy.cost == pytest.approx(
        server.w_latency * policy.mean_response_ms + server.w_power * policy.power_w
    )
    for rule in (greedy(server, num_states), wait_for(server, server.max_batch, num_states)):
        assert policy.model_cost <= rule.model_cost * (1 + 1e-9)


@settings(max_examples=60)
@given(small_servers())
def test_the_more_power_counts_the_less_is_taken(server: BatchServer) -> None:
    found = [
        solve(replace(server, w_latency=1.0, w_power=weight), 40, 50.0) for weight in (0, 1, 5, 50)
    ]
    for less, more in itertools.pairwise(found):
        # The abstract cost counts equally in all, so response and overflow change as one.
        assert more.power_w <= less.power_w * (1 + 1e-7) + 1e-9
        assert more.mean_response_ms + 50 * more.overflow_ratio >= (
            less.mean_response_ms + 50 * less.overflow_ratio
        ) * (1 - 1e-7)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8])
def test_without_a_discount_one_is_served_at_once(load: float) -> None:
    """A batch that takes as long as its requests one by one: nobody gains by waiting for others."""
    server = BatchServer.affine(load * 1000, (0.0, 1.0), (0.0, 1.0), 8)
    policy = solve(server, 256)
    assert policy.batches[:100] == (0, *[1] * 99)
    # Pollaczek and Khinchine: mean response time of M/D/1.
    assert policy.mean_response_ms == pytest.approx(1 + load / (2 * (1 - load)), rel=1e-9)
    assert policy.power_w == pytest.approx(load)


def test_little_load_and_no_power_serves_what_comes() -> None:
    for load in (0.001, 0.1, 0.3):
        policy = solve(googlenet(load, 0.0))
        assert policy.control_limit == 1 and policy.batches[:4] == (0, 1, 2, 3)


def test_the_abstract_cost_saves_states() -> None:
    server = googlenet(0.9, 1)
    true_cost = solve(server, 160, 0.0).cost
    assert true_cost == pytest.approx(66.131, abs=0.001)
    few = solve(server, 40, 100.0)
    assert few.model_cost == pytest.approx(66.285, abs=0.001)
    assert evaluate(server, few.batch_of).cost == pytest.approx(true_cost, rel=1e-4)
    for num_states in (40, 64):  # being beyond costs nothing there, so nobody is served before
        assert solve(server, num_states, 0.0).control_limit == num_states + 1


def test_states_are_chosen_so_that_they_suffice() -> None:
    for load in (0.1, 0.9, 0.97):
        policy = solve(googlenet(load, 1))
        longer = evaluate(googlenet(load, 1), policy.batch_of, 1024)
        assert policy.cost == pytest.approx(longer.cost, rel=1e-5)


@pytest.mark.parametrize("rate", [1e-9, 1e-3, 2958.0, 2958.7, 5e3, 1e6, 1e12])
@pytest.mark.parametrize("weights", [(1, 0), (0, 1), (1, 1), (1, 1e9), (1e9, 1e-9)])
def test_a_live_server_gets_a_sane_table_at_any_rate(
    rate: float, weights: tuple[float, float]
) -> None:
    w_latency, w_power = weights
    server = BatchServer.affine(rate, SERVICE_MS, ENERGY_MJ, MAX_BATCH, 1, w_latency, w_power)
    policy = solve(server, 64)
    assert 1 <= policy.control_limit <= MAX_BATCH
    assert all(policy.batches[policy.control_limit :]), "who has begun to serve goes on"
    assert policy.overflow_batch == MAX_BATCH
    assert not any(math.isnan(value) for value in (policy.cost, policy.power_w))
    assert math.isinf(policy.mean_response_ms) == (server.load_ratio >= 1)
    if server.load_ratio >= 0.9:
        assert policy.batches[32:] == (32,) * 33


def test_a_rule_that_does_not_keep_up_has_no_response_time() -> None:
    server = googlenet(0.9, 1)
    assert math.isinf(always(server, 4).cost)
    assert math.isfinite(wait_for(server, 4).cost)


def test_a_time_out_is_one_of_nothing_or_one_of_for_ever() -> None:
    server = googlenet(0.5, 2)
    at_once = simulate_release(server, TimeOut(32, 0.0), 1e5)
    assert at_once == simulate_release(server, greedy(server), 1e5)
    for_ever = simulate_release(server, TimeOut(8, 1e9), 1e5)
    assert for_ever == simulate_release(server, wait_for(server, 8), 1e5)


def test_no_batch_of_a_time_out_is_too_small() -> None:
    server = replace(googlenet(0.3, 1), min_batch=4)
    found = simulate_release(server, TimeOut(8, 0.0), 1e5)
    assert found == simulate_release(server, greedy(server), 1e5)


def test_a_run_is_a_function_of_its_seed() -> None:
    server = googlenet(0.5, 2)
    runs = [simulate_release(server, TimeOut(8, 2.0), 2e4, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arrival_rate": 0.0}, "arrival_rate must be above 0"),
        ({"arrival_rate": -1.0}, "arrival_rate must be above 0"),
        ({"arrival_rate": math.inf}, "arrival_rate must be above 0"),
        ({"arrival_rate": math.nan}, "arrival_rate must be above 0"),
        ({"service_ms": ()}, "service_ms has 0 batch sizes"),
        ({"service_ms": (1.0, 0.0)}, "service_ms of a batch of 2 must be above 0"),
        ({"service_ms": (1.0, math.nan)}, "service_ms of a batch of 2"),
        ({"energy_mj": (1.0,)}, "energy_mj has 1 batch sizes, service_ms has 2"),
        ({"energy_mj": (1.0, -1.0)}, "energy_mj of a batch of 2 must be from 0"),
        ({"min_batch": 0}, "min_batch 0 is not in 1..max_batch 2"),
        ({"min_batch": 3}, "min_batch 3 is not in 1..max_batch 2"),
        ({"w_latency": -1.0}, "w_latency must be from 0"),
        ({"w_power": math.nan}, "w_power must be from 0"),
        ({"w_latency": 0.0, "w_power": 0.0}, "w_latency and w_power are both 0"),
    ],
)
def test_contradictions_are_named(change: dict[str, object], told: str) -> None:
    server = BatchServer(10.0, (1.0, 1.5), (1.0, 1.5), 1, 1.0, 1.0)
    with pytest.raises(ValueError, match=told):
        replace(server, **change)  # type: ignore[arg-type]


def test_what_a_model_cannot_be_is_named() -> None:
    server = googlenet(0.5, 1)
    for num_states in (31, MAX_STATES + 1):
        with pytest.raises(ValueError, match=f"num_states {num_states} is not in 32"):
            solve(server, num_states)
    for overflow_cost in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="overflow_cost must be from 0"):
            solve(server, 64, overflow_cost)
    with pytest.raises(ValueError, match="max_batch 0 is not in 1"):
        BatchServer.affine(1.0, (1, 1), (1, 1), 0)
    with pytest.raises(ValueError, match=r"a batch of 33 is not in 1\.\.32"):
        wait_for(server, 33)
    with pytest.raises(ValueError, match="a batch of 5 cannot be served with 0 waiting"):
        evaluate(server, lambda number: 5)
    for rule in (TimeOut(33, 1.0), TimeOut(8, -1.0)):
        with pytest.raises(ValueError, match=r"does not fit batches of 1\.\.32"):
            simulate_release(server, rule, 1e5)
    with pytest.raises(ValueError, match="are too few; simulate for longer"):
        simulate_release(server, greedy(server), 1.0)


def test_a_policy_is_a_plain_table() -> None:
    policy = ReleasePolicy((0, 0, 2), 4, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert [policy.batch_of(number) for number in range(5)] == [0, 0, 2, 4, 4]
    assert (policy.control_limit, policy.num_states) == (2, 2)
    assert replace(policy, batches=(0, 0)).control_limit == 2
