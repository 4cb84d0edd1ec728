# SPDX-License-Identifier: Apache-2.0
"""Arms that take turns: the ratio of their own times is that of their work, whatever the machine does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_batchllm.bench import turns
from vllm_batchllm.bench.turns import Lane, take_turns
from vllm_batchllm.measure.recorder import StepRecord

NUM_REQUESTS = 40


class Machine:
    """A clock, and a speed that changes as time goes by."""

    def __init__(self, slow_from_s: float, slow_until_s: float, factor: float) -> None:
        self.now_s = 0.0
        self._slow = (slow_from_s, slow_until_s, factor)

    def __call__(self) -> float:
        return self.now_s

    def work(self, seconds: float) -> None:
        start, end, factor = self._slow
        self.now_s += seconds * (factor if start <= self.now_s < end else 1.0)


class Engine:
    """Finishes a request with every step of so much work; ten tokens each."""

    def __init__(self, machine: Machine, seconds_per_step: float) -> None:
        self._machine, self._seconds = machine, seconds_per_step
        self.record = StepRecord()
        self.waiting: list[str] = []

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        self.waiting.append(request_id)

    def step(self) -> list[Any]:
        self._machine.work(self._seconds)
        self.record.step_tokens.append(10)
        name = self.waiting.pop(0)
        answer = SimpleNamespace(token_ids=[int(name)])
        return [SimpleNamespace(finished=True, request_id=name, outputs=[answer])]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Slow by a factor of 5 for a while in the middle."""
    machine = Machine(3.0, 6.0, 5.0)
    monkeypatch.setattr(turns.time, "perf_counter", machine)
    monkeypatch.setattr(turns.time, "process_time", machine)
    return machine


def lanes_of(machine: Machine, *seconds_per_step: float) -> list[Lane]:
    requests = [({}, None)] * NUM_REQUESTS
    lanes = []
    for number, seconds in enumerate(seconds_per_step):
        engine = Engine(machine, seconds)
        lanes.append(Lane(str(number), engine, requests, engine.record, 10 * NUM_REQUESTS))
    return lanes


def test_a_slow_moment_hits_all_alike(machine: Machine) -> None:
    first, second = lanes_of(machine, 0.2, 0.1)
    take_turns([first, second], machine)
    assert first.wall_s / second.wall_s == pytest.approx(2.0, rel=0.08)
    assert machine.now_s == pytest.approx(first.wall_s + second.wall_s)


def test_one_after_the_other_it_hits_one(machine: Machine) -> None:
    first, second = lanes_of(machine, 0.2, 0.1)
    for lane in (first, second):
        take_turns([lane], machine)
    assert first.wall_s / second.wall_s > 2.2, "or there would be nothing to mend"


def test_all_end_together_and_have_all_outputs(machine: Machine) -> None:
    lanes = lanes_of(machine, 0.3, 0.1, 0.2)
    take_turns(lanes, machine)
    for lane in lanes:
        assert lane.has_ended and lane.progress()[0] == 1.0
        assert lane.outputs == {number: [number] for number in range(NUM_REQUESTS)}
    assert lanes[0].wall_s > lanes[2].wall_s > lanes[1].wall_s
