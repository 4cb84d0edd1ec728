# SPDX-License-Identifier: Apache-2.0
"""Replicas without engines: they answer after a while, and die, hang or have no place as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vllm_batchllm.replicas.assignment import Assignment
from vllm_batchllm.replicas.cut import Costs, Floats
from vllm_batchllm.replicas.driver import Driver
from vllm_batchllm.replicas.replica import (
    Capacity,
    Given,
    NoPlaceError,
    ReplicaGoneError,
    Taken,
)
from vllm_batchllm.replicas.slot import DriveLimits

STEP_S = 0.002


@dataclass
class FakeReplica:
    """Computes ``max_num_seqs`` items a step.

    poison: items that kill it. dies_at: steps, in all its lives, before which it is killed. hangs_at: the step from which on
    its first life makes no more. places: what `start` raises, first to last.
    """

    name: str
    max_num_seqs: int = 4
    poison: frozenset[int] = frozenset()
    dies_at: set[int] = field(default_factory=set)
    hangs_at: int | None = None
    starts: list[Exception | None] = field(default_factory=list)
    num_lives: int = 0
    num_steps: int = 0
    is_alive: bool = False
    had: list[list[int]] = field(default_factory=list)
    """Items of each piece."""
    _queue: list[int] = field(default_factory=list)

    async def start(self) -> Capacity:
        await asyncio.sleep(0)
        failure = self.starts.pop(0) if self.starts else None
        if failure is not None:
            raise failure
        self.num_lives += 1
        self.is_alive, self._queue = True, []
        return Capacity(self.max_num_seqs)

    async def give(self, given: Sequence[Given]) -> None:
        self._check()
        self.had.append([item for item, _ in given])
        self._queue += [item for item, _ in given]

    async def take(self) -> Taken:
        await asyncio.sleep(STEP_S)
        self._check()
        if self.hangs_at is not None and self.num_lives == 1 and self.num_steps >= self.hangs_at:
            return Taken([], len(self._queue), self.num_steps)
        self.num_steps += 1
        running, self._queue = self._queue[: self.max_num_seqs], self._queue[self.max_num_seqs :]
        if self.num_steps in self.dies_at or self.poison & set(running):
            self.is_alive = False
        self._check()
        answers = [(item, f"answer {item}") for item in running]
        return Taken(answers, len(running), self.num_steps, {"steps": self.num_steps})

    async def release(self) -> None:
        await self.end()

    async def end(self) -> None:
        self.is_alive = False

    def _check(self) -> None:
        if not self.is_alive:
            raise ReplicaGoneError("it was killed")


class Book:
    """A batch that remembers its answers."""

    def __init__(self) -> None:
        self.answers: dict[int, Any] = {}
        self.given_up: list[int] = []
        self.num_twice = 0

    async def load(self, items: Sequence[int], capacity: Capacity) -> list[Given]:
        await asyncio.sleep(0)
        return [(item, item) for item in items]

    async def answered(self, item: int, answer: Any) -> None:
        self.num_twice += item in self.answers
        self.answers[item] = answer

    async def give_up(self, item: int) -> None:
        self.given_up.append(item)
        self.answers[item] = None

    def work_now(self) -> Floats | None:
        return None


def drive(
    replicas: Sequence[Any],
    num_items: int = 200,
    limits: DriveLimits | None = None,
    stop_after_s: float | None = None,
) -> tuple[Book, Driver, bool]:
    """Run a batch; returns its book, the driver, and whether it was done."""
    costs = Costs(np.ones(num_items), np.zeros(num_items))
    book = Book()

    async def run() -> tuple[Driver, bool]:
        names = [replica.name for replica in replicas]
        driver = Driver(
            replicas, Assignment(costs, names), book, limits or DriveLimits(), costs.work
        )
        stop = asyncio.Event()
        if stop_after_s is not None:
            asyncio.get_running_loop().call_later(stop_after_s, stop.set)
        return driver, await driver.run(stop)

    driver, is_done = asyncio.run(run())
    return book, driver, is_done


def no_place() -> Exception:
    return NoPlaceError("no node has room")
