# SPDX-License-Identifier: Apache-2.0
"""The best release policy of a batch server, by policy iteration; value iteration is the check of it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vllm_batchllm.admission.release_model import Floats, Ints, ReleaseModel
from vllm_batchllm.admission.release_policy import ReleasePolicy, enough_states, policy_of
from vllm_batchllm.admission.release_server import BatchServer

MAX_ROUNDS = 100
"""Rounds of policy iteration; a handful is the rule, and what is found by then is served with."""

OVERLOADED = 0.95
"""Load whose table serves a server that cannot keep up."""

_ROUNDING = 1e-11
"""Differences of relative size that are rounding: they change no decision."""


def solve(
    server: BatchServer, num_states: int | None = None, overflow_cost: float | None = None
) -> ReleasePolicy:
    """The policy of least cost; of actions that are equally good, the largest batch.

    Each round solves for the values of a table and takes what is best by them in every state
    (Howard; Puterman, Markov Decision Processes, section 11.4.4).

    A load of 1 or more is served by the table of a load of OVERLOADED: the truncated process would rather stand still
    there, since it counts only those whom it has states for.
    Beyond its states the policy serves the fastest batch. The process itself would leave the state of
    overflow by a small one, as quickly as it can, because it does not count who waits there; a server that did so might
    never catch up.

    Args:
        num_states: waiting requests that are told apart; None for enough, see `enough_states`.
        overflow_cost: abstract cost of a millisecond beyond; None for one of the size of the others,
            see `ReleaseModel`.

    Raises:
        ValueError: num_states is below the largest batch or too large, or overflow_cost is negative.
    """
    if num_states is None:
        return enough_states(server, lambda number: solve(server, number, overflow_cost))
    model = ReleaseModel(server, num_states, overflow_cost)
    if server.load_ratio >= 1:
        calm = replace(server, arrival_rate=OVERLOADED * server.max_rate)
        actions = _best(ReleaseModel(calm, num_states, overflow_cost))
    else:
        actions = _best(model)
    return policy_of(model, actions, server.fastest_batch)


def _best(model: ReleaseModel) -> Ints:
    """The best action of each state."""
    actions = _at_once(model)
    for _ in range(MAX_ROUNDS):
        better = _improved(model, actions)
        if np.array_equal(better, actions):
            break
        actions = better
    return _largest(model, actions)


def _at_once(model: ReleaseModel) -> Ints:
    """Batches of the greedy policy."""
    batches = np.minimum(model.numbers, model.server.max_batch)
    return np.where(batches >= model.server.min_batch, batches, 0)


def _improved(model: ReleaseModel, actions: Ints) -> Ints:
    """The best action of each state by the values of ``actions``, kept where none is better."""
    ahead, rounding = _ahead(model, actions)
    is_kept = ahead[np.arange(len(actions)), actions] <= ahead.min(axis=1) + rounding
    return np.where(is_kept, actions, ahead.argmin(axis=1))


def _largest(model: ReleaseModel, actions: Ints) -> Ints:
    """The largest batch of those that are as good as ``actions``, which are the best."""
    ahead, rounding = _ahead(model, actions)
    is_best = ahead <= ahead.min(axis=1, keepdims=True) + rounding
    return np.asarray(ahead.shape[1] - 1 - is_best[:, ::-1].argmax(axis=1))


def _ahead(model: ReleaseModel, actions: Ints) -> tuple[Floats, float]:
    """Cost of each action in each state with ``actions`` ever after, and what of it is rounding."""
    figures = model.figures(actions)
    ahead = model.costs - figures.gain * model.sojourn + model.expected(figures.values)
    return ahead, float(_ROUNDING * np.abs(figures.values).max())


class ValueIteration(NamedTuple):
    """What relative value iteration has found.

    policy: its table. model_cost: between the least and the greatest bound that it ended with.
    num_rounds: updates of all states. is_settled: whether the bounds have met; they do not where two tables
    that hardly lead to each other cost nearly the same.
    """

    policy: ReleasePolicy
    model_cost: float
    num_rounds: int
    is_settled: bool


def solve_by_values(
    server: BatchServer,
    num_states: int,
    overflow_cost: float | None = None,
    tolerance: float = 1e-6,
    max_rounds: int = 200_000,
) -> ValueIteration:
    """The same by relative value iteration on the discrete-time process (arXiv 2501.02181, section IV).

    Costs become costs per unit of time, and a step of ``eta`` units goes where the decision leads with
    probability eta / sojourn; ``eta`` is below sojourn / (1 - chance to stay) of every decision.

    Args:
        tolerance: of the cost, relative, at which it ends; or after max_rounds.

    Raises:
        ValueError: as `solve`.
    """
    model = ReleaseModel(server, num_states, overflow_cost)
    rates, weights = _discrete(model)
    values = np.zeros(num_states + 2)
    num_rounds, low, high = 0, -1.0, 1.0
    while num_rounds < max_rounds and high - low > tolerance * abs(high):
        ahead = rates + weights * (model.expected(values) - values[:, None])
        gains = ahead.min(axis=1)
        low, high = gains.min(), gains.max()
        values = values + gains - gains[0]
        num_rounds += 1
    actions = (rates + weights * (model.expected(values) - values[:, None])).argmin(axis=1)
    cost = (low + high) / 2 * model.rate
    policy = policy_of(model, actions, server.fastest_batch)
    is_settled = bool(high - low <= tolerance * abs(high))
    return ValueIteration(policy, float(cost), num_rounds, is_settled)


def _discrete(model: ReleaseModel) -> tuple[Floats, Floats]:
    """Cost of each state and action per unit of time, and the weight of a change of state."""
    leaves = 1.0 - model.stay_ratios()
    is_bound = model.is_allowed & (leaves > 0.0)
    eta = 0.999 * np.min(
        model.sojourn / np.where(is_bound, leaves, 1e-300), where=is_bound, initial=np.inf
    )
    return model.costs / model.sojourn, np.asarray(eta / model.sojourn)
