# SPDX-License-Identifier: Apache-2.0
"""What counts as the time of a step: all that passes between two tokens, and no pause of the engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_batchllm.admission.latency_target import LatencyTarget
from vllm_batchllm.admission.step_times import StepLoad, StepTimes
from vllm_batchllm.scheduler.step_sizes import PAUSE_S, StepSizer


class Seen(LatencyTarget):
    """Notes what steps are said to have taken."""

    def __init__(self) -> None:
        super().__init__(1000, StepTimes())
        self.durations_s: list[float] = []

    def observe(self, load: StepLoad, duration_s: float, target_s: float | None) -> None:
        self.durations_s.append(duration_s)


class Engine:
    """One request that decodes, and a clock that is set."""

    def __init__(self) -> None:
        self.now_s = 0.0
        request = SimpleNamespace(num_computed_tokens=50, num_prompt_tokens=40)
        self.scheduler: Any = SimpleNamespace(
            max_num_scheduled_tokens=1000, max_num_active_reqs=8, num_spec_tokens=0,
            requests={"a": request}, running=[request],
        )  # fmt: skip
        self.seen = Seen()
        self.sizer = StepSizer(self.scheduler, self.seen, lambda: self.now_s)

    def begin(self, at_s: float) -> Any:
        self.now_s = at_s
        self.sizer.begin_step(None, None)
        output: Any = SimpleNamespace(total_num_scheduled_tokens=1, num_scheduled_tokens={"a": 1})
        self.sizer.end_step(output)
        return output

    def end(self, output: Any, at_s: float) -> None:
        self.now_s = at_s
        self.sizer.updated(output)


def test_what_the_host_does_between_two_steps_is_time_between_tokens() -> None:
    engine = Engine()
    engine.end(engine.begin(1.0), 1.01)
    engine.end(engine.begin(1.015), 1.03)  # 5 ms in which requests were taken in
    assert engine.seen.durations_s == pytest.approx([0.01, 0.02])


def test_after_everybody_has_ended_the_next_step_begins_when_it_begins() -> None:
    engine = Engine()
    output, engine.scheduler.running = engine.begin(1.0), []
    engine.end(output, 1.01)
    engine.end(engine.begin(1.5), 1.51)
    assert engine.seen.durations_s == pytest.approx([0.01, 0.01])


def test_an_engine_that_slept_has_no_step_of_that_length() -> None:
    engine = Engine()
    engine.end(engine.begin(1.0), 1.01)
    engine.end(engine.begin(1.01 + 2 * PAUSE_S), 1.02 + 2 * PAUSE_S)
    assert engine.seen.durations_s == pytest.approx([0.01, 0.01])


def test_with_two_steps_in_flight_each_takes_the_time_between_their_outputs() -> None:
    engine = Engine()
    first = engine.begin(1.0)
    second = engine.begin(1.002)
    engine.end(first, 1.02)
    third = engine.begin(1.021)
    engine.end(second, 1.04)
    engine.end(third, 1.06)
    assert engine.seen.durations_s == pytest.approx([0.02, 0.02, 0.02])
