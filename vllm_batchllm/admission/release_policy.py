# SPDX-License-Identifier: Apache-2.0
"""When a batch is released: a table from the number of waiting requests to the batch to serve now.

The best one comes from `solve`; `greedy`, `wait_for` and `always` are what servers do without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_batchllm.admission.release_model import MAX_STATES, Ints, ReleaseModel
from vllm_batchllm.admission.release_server import BatchServer

LEAST_STATES = 64
"""States that a solution starts with where none are asked for."""

ENOUGH_OVERFLOW = 1e-6
"""Share of time in the state of overflow below which more states change no figure."""


@dataclass(frozen=True, slots=True)
class ReleasePolicy:
    """A table of decisions, and what it comes to in the long run.

    batches: for 0, 1, ... waiting requests the batch to serve now, 0 to wait for the next arrival.
    overflow_batch: the same for more than the table has; never 0. cost: w_latency · mean_response_ms +
    w_power · power_w. mean_response_ms: from arrival to the end of the batch. power_w: mean power.
    overflow_ratio: share of time in the state of overflow; the figures count those who wait there as if they were
    as many as the table has, so they are right where this is next to nothing. A policy that does not keep up has an
    infinite response time. model_cost: cost, and the
    abstract cost of that time: what `solve` makes smallest.
    """

    batches: tuple[int, ...]
    overflow_batch: int
    cost: float
    mean_response_ms: float
    power_w: float
    overflow_ratio: float
    model_cost: float

    def batch_of(self, num_waiting: int) -> int:
        """How many of ``num_waiting`` (0 or more) to serve now; 0 to wait. O(1)."""
        if num_waiting < len(self.batches):
            return self.batches[num_waiting]
        return self.overflow_batch

    @property
    def num_states(self) -> int:
        """Most waiting requests that the table tells apart."""
        return len(self.batches) - 1

    @property
    def control_limit(self) -> int:
        """Fewest waiting requests at which a batch is served."""
        served = (number for number, batch in enumerate(self.batches) if batch)
        return next(served, len(self.batches))


def policy_of(model: ReleaseModel, actions: Ints, overflow_batch: int) -> ReleasePolicy:
    """The policy of a table, with its figures.

    Args:
        actions: batch of each state of ``model``, (num_states + 2,), that of overflow last.
        overflow_batch: what the policy serves there.
    """
    figures, server = model.figures(actions), model.server
    response_ms = figures.mean_response_ms if server.keeps_up(overflow_batch) else math.inf
    waiting = server.w_latency * response_ms if server.w_latency else 0.0
    cost = waiting + server.w_power * figures.power_w
    return ReleasePolicy(
        tuple(actions[:-1].tolist()),
        overflow_batch,
        cost,
        response_ms,
        figures.power_w,
        figures.overflow_ratio,
        cost + model.overflow_cost * figures.overflow_ratio,
    )


def evaluate(
    server: BatchServer, batch_of: Callable[[int], int], num_states: int | None = None
) -> ReleasePolicy:
    """What a rule comes to: ``batch_of`` tells the batch for a number of waiting requests, as a policy does.

    Args:
        num_states: where it is cut off; None for enough, see `enough_states`. Beyond it the batch
            is that of one more, or the fastest where that would be 0.

    Raises:
        ValueError: a batch is not allowed for its number of waiting requests.
    """
    if num_states is None:
        return enough_states(server, lambda number: evaluate(server, batch_of, number))
    model = ReleaseModel(server, num_states)
    batches = [batch_of(number) for number in range(num_states + 2)]
    batches[-1] = batches[-1] or server.fastest_batch
    return policy_of(model, checked(model, batches), batches[-1])


def checked(model: ReleaseModel, batches: Sequence[int]) -> Ints:
    """``batches`` as an array. Raises ValueError where one is not allowed in its state."""
    for number, batch in zip(model.numbers.tolist(), batches, strict=True):
        if batch and not model.server.min_batch <= batch <= min(number, model.server.max_batch):
            raise ValueError(f"a batch of {batch} cannot be served with {number} waiting")
    return np.array(batches, dtype=np.int64)


def enough_states(
    server: BatchServer, policy_with: Callable[[int], ReleasePolicy]
) -> ReleasePolicy:
    """``policy_with`` so many states that overflow is next to never, or the most there may be.

    What does not keep up overflows however many there are: it gets the fewest.
    """
    num_states = max(LEAST_STATES, 2 * server.max_batch)
    policy = policy_with(num_states)
    while server.keeps_up(policy.overflow_batch) and policy.overflow_ratio > ENOUGH_OVERFLOW:
        if num_states == MAX_STATES:  # loads near 1 would want any number
            break
        num_states = min(2 * num_states, MAX_STATES)
        policy = policy_with(num_states)
    return policy


def greedy(server: BatchServer, num_states: int | None = None) -> ReleasePolicy:
    """Serve whatever waits, as soon as it may be served."""
    return wait_for(server, server.min_batch, num_states)


def wait_for(
    server: BatchServer, num_requests: int, num_states: int | None = None
) -> ReleasePolicy:
    """Wait until ``num_requests`` wait, then serve all of them, as far as a batch goes.

    Raises:
        ValueError: such a batch is not allowed.
    """
    _check_size(server, num_requests)
    return evaluate(
        server,
        lambda number: min(number, server.max_batch) if number >= num_requests else 0,
        num_states,
    )


def always(server: BatchServer, num_requests: int, num_states: int | None = None) -> ReleasePolicy:
    """Serve batches of just ``num_requests``.

    Raises:
        ValueError: such a batch is not allowed.
    """
    _check_size(server, num_requests)
    return evaluate(
        server, lambda number: num_requests if number >= num_requests else 0, num_states
    )


def _check_size(server: BatchServer, num_requests: int) -> None:
    if num_requests not in server.batch_sizes:
        raise ValueError(
            f"a batch of {num_requests} is not in {server.min_batch}..{server.max_batch}"
        )
