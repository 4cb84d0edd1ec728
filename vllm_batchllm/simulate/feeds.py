# SPDX-License-Identifier: Apache-2.0
"""What replicas are handed: parts that were fixed before, or ours, cut where it is cheap and stolen while running."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vllm_batchllm.replicas.assignment import Assignment
from vllm_batchllm.replicas.cut import Costs, cheapest_cuts
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.cost_model import CostModel, StepWork
from vllm_batchllm.simulate.placement import (
    FIXED,
    STEALING_OFF,
    Ints,
    prefix_order,
    shared_before,
)
from vllm_batchllm.simulate.pool import Pool
from vllm_batchllm.simulate.request_costs import Floats, RequestCosts
from vllm_batchllm.workloads.batch import Batch

FIRST_OUTPUT_TOKENS = 128
"""Expected output of a request of unknown length before any has ended."""
_FIRST_ENDS = 32
_GUESSED = 0.5
"""Certainty while nobody has ended: the expected output may be twice as long as the real one."""


class Feed(Protocol):
    """Who gets which requests, named by their places in the batch. Replicas are numbers from 0, times are of the replica's clock."""

    @property
    def num_left(self) -> int:
        """Requests that no replica was told of."""

    def take(self, replica: int, num_requests: int, now_s: float) -> list[int]:
        """At most so many requests that the replica computes next."""

    def worked(self, replica: int, work: StepWork) -> None:
        """The replica has done a step."""

    def ended(self, replica: int, place: int) -> None:
        """A request has ended there."""

    def look(self, replica: int, busy_s: float, now_s: float) -> None:
        """The replica has been busy for so long until now; what is known of it counts from here on."""


class FixedFeed:
    """Parts that are decided before anything runs, each in the order in which the arm gets its input."""

    def __init__(self, batch: Batch, arm: Arm, pool: Pool) -> None:
        parts = FIXED[pool.placement](batch, pool.num_replicas)
        if pool.placement == "sorted-split":
            self._parts = parts
        else:
            rank = {place: at for at, place in enumerate(arm.input_order(batch))}
            self._parts = [sorted(part, key=rank.__getitem__) for part in parts]
        self._next = [0] * pool.num_replicas
        self._num_left = batch.num_requests

    @property
    def num_left(self) -> int:
        """Requests that no replica was told of."""
        return self._num_left

    def take(self, replica: int, num_requests: int, now_s: float) -> list[int]:
        """The next of the replica's own part."""
        begin = self._next[replica]
        taken = self._parts[replica][begin : begin + num_requests]
        self._next[replica] += len(taken)
        self._num_left -= len(taken)
        return taken

    def worked(self, replica: int, work: StepWork) -> None:
        """Nobody asks."""

    def ended(self, replica: int, place: int) -> None:
        """Nobody asks."""

    def look(self, replica: int, busy_s: float, now_s: float) -> None:
        """Nobody asks."""


@dataclass(slots=True)
class _Book:
    """Of one replica, seconds of work: of what it was told of, of what it has done, of requests that have not ended.

    told: requests with their best known lengths, so that told less done is what is still to do.
    """

    told: float = 0.0
    done: float = 0.0
    open: float = 0.0
    items: set[int] = field(default_factory=set)

    @property
    def backlog(self) -> float:
        return min(max(self.told - self.done, 0.0), max(self.open, 0.0))


class PlannedFeed:
    """Intervals of the depth-first order, cut where it is cheap; who has nothing left takes from who ends last.

    Output lengths that the engine must not know are not known here either: their mean is learnt from those that have ended.
    """

    def __init__(self, batch: Batch, costs: CostModel, pool: Pool, block_size: int) -> None:
        self._rates = RequestCosts.of(costs)
        self._order = np.array(prefix_order(batch.prompts), dtype=np.int64)
        self._item = np.empty_like(self._order)
        self._item[self._order] = np.arange(len(self._order))
        order: list[int] = self._order.tolist()
        self._lengths: Ints = np.array([len(batch.prompts[place]) for place in order])
        self._hits = shared_before(batch.prompts, order, block_size, batch.limits)
        self._outputs: Ints = np.array([batch.output_lens[place] for place in order])
        self._real = self._work(self._outputs.astype(np.float64))
        self._expected = self._real
        self._learns = not batch.lengths_known
        if self._learns:
            first = min(FIRST_OUTPUT_TOKENS, batch.max_output_tokens)
            self._expected = self._work(np.full(len(order), float(first)))
        self._num_ended, self._ended_tokens, self._learn_at = 0, 0, _FIRST_ENDS
        self._books = [_Book() for _ in range(pool.num_replicas)]
        self._num_replicas = pool.num_replicas
        self._shared: Floats = self._rates.of_prompt(np.zeros_like(self._hits), self._hits)
        self.assignment = Assignment(
            Costs(self._expected, self._shared),
            range(pool.num_replicas),
            steals=pool.placement != STEALING_OFF,
        )
        self.assignment.certainty = _GUESSED if self._learns else 1.0

    @property
    def num_left(self) -> int:
        """Requests that no replica was told of."""
        return self.assignment.num_left

    @property
    def new_tokens(self) -> float:
        """Prompt tokens that a request computes in the mean."""
        return float((self._lengths - self._hits).mean())

    @property
    def prefix_tokens(self) -> Ints:
        """Tokens that each request shares with the one before it, in depth-first order."""
        return self._hits

    @property
    def costs(self) -> Costs:
        """Of the requests in depth-first order, by their real lengths, seconds."""
        return Costs(self._real, self._shared)

    def cheapest_tokens(self) -> int:
        """Prefix tokens that the cheapest cut computes twice, by the real lengths."""
        return int(self._hits[cheapest_cuts(self.costs, self._num_replicas)].sum())

    def take(self, replica: int, num_requests: int, now_s: float) -> list[int]:
        """The next of the replica's interval, or of one that it takes from another."""
        items = self.assignment.take(replica, num_requests, now_s)
        book = self._books[replica]
        work = float(self._expected[items].sum())
        book.told += work
        book.open += work
        book.items.update(items)
        places: list[int] = self._order[items].tolist()
        return places

    def worked(self, replica: int, work: StepWork) -> None:
        """Count what was done."""
        self._books[replica].done += self._rates.of_step(work)

    def ended(self, replica: int, place: int) -> None:
        """Its length is known now."""
        item, book = int(self._item[place]), self._books[replica]
        book.items.discard(item)
        book.told += float(self._real[item] - self._expected[item])
        book.open -= float(self._expected[item])
        self._num_ended += 1
        self._ended_tokens += int(self._outputs[item])
        if self._learns and self._num_ended >= self._learn_at:
            self._learn_at = 2 * self._num_ended
            self._reweigh(self._ended_tokens / self._num_ended)

    def look(self, replica: int, busy_s: float, now_s: float) -> None:
        """Tell the assignment how fast the replica is, and how much it has to do."""
        book = self._books[replica]
        if busy_s > 0:
            self.assignment.set_speed(replica, book.done / busy_s)
        self.assignment.set_backlog(replica, book.backlog, now_s)

    def _reweigh(self, output_tokens: float) -> None:
        before = self._expected
        self._expected = self._work(np.full(len(before), output_tokens))
        for book in self._books:
            items = list(book.items)
            more = float(self._expected[items].sum() - before[items].sum())
            book.told += more
            book.open += more
        self.assignment.reweigh(self._expected)
        self.assignment.certainty = 1.0

    def _work(self, outputs: Floats) -> Floats:
        return self._rates.of_requests(self._lengths, self._hits, outputs)
