# SPDX-License-Identifier: Apache-2.0
"""Batches of images: a step looks at no more of those who wait than can start, and serves as vLLM does.

From 0.33 on vLLM skips whoever does not fit the encoder in a step, so it looks at everybody. 0.32 ends the step's
admissions there.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_batchllm.scheduler.encoder_gate import MOST_REFUSED, EncoderGate

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import engine_thread as bench

SKIPS = bench.Setup(200, bench.image, max_num_seqs=64, max_tokens=4, encoder_tokens=4 * 32)
NUM_FIT = 4


def text_among(number: int) -> dict[str, Any]:
    return {} if number == 150 else bench.image(number)


def shared_images(number: int) -> dict[str, Any]:
    """Eight questions about each image."""
    return bench.image(number // 8)


def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of those whose images are looked at from now on."""
    seen: list[str] = []
    original = Scheduler._try_schedule_encoder_inputs

    def told(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(request.request_id)
        return original(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_try_schedule_encoder_inputs", told)
    return seen


def test_a_step_looks_at_few_of_those_who_wait(llama, monkeypatch) -> None:
    arm, stock = (bench.Arm(name, llama, SKIPS) for name in ("batchllm", "stock"))
    for each in (arm, stock):
        each.step()
    seen = looks(monkeypatch)
    for _ in range(5):
        stock.step()
        num_running = len(arm.scheduler.running)
        seen.clear()
        arm.step()
        assert len(seen) <= num_running + NUM_FIT + MOST_REFUSED
        assert bool(arm.scheduler.waiting), "between steps the queue shows who waits"
        bound = [each.scheduler.prefill_capacity_bound for each in (arm, stock)]
        assert bound[0] == bound[1], "data parallelism must balance as with vLLM's own"
        arm.scheduler.waiting.check_integrity()


def test_with_a_connector_everybody_is_looked_at_as_with_stock(llama, monkeypatch) -> None:
    """Those who stand behind may have transfers to begin."""
    setup = replace(SKIPS, fields=bench.image, has_connector=True)
    num_looks = []
    for name in bench.ARMS:
        arm = bench.Arm(name, llama, setup)
        arm.step()
        with monkeypatch.context() as patch:
            seen = looks(patch)
            arm.step()
        num_looks.append(len(seen))
    assert num_looks[0] == num_looks[1], num_looks


@pytest.mark.parametrize("fields", [bench.image, shared_images, text_among])
def test_everybody_is_served_in_no_more_steps_than_with_stock(llama, fields) -> None:
    steps = {}
    for name in bench.ARMS:
        arm = bench.Arm(name, llama, replace(SKIPS, fields=fields))
        steps[name] = 0
        while arm.scheduler.has_unfinished_requests():
            arm.step()
            steps[name] += 1
    assert steps["batchllm"] <= 1.02 * steps["stock"], steps


def test_who_needs_no_encoder_starts_behind_images_when_it_would_with_stock(llama) -> None:
    started = {}
    for name in bench.ARMS:
        arm = bench.Arm(name, llama, replace(SKIPS, fields=text_among))
        started[name] = 0
        while "150" not in {r.request_id for r in arm.scheduler.running}:
            arm.step()
            started[name] += 1
    assert started["batchllm"] <= started["stock"]


def closed(gate: EncoderGate) -> EncoderGate:
    gate.begin_step(is_running=True)
    gate.answered(is_refused=True)
    gate.answered(is_refused=True)
    return gate


def test_it_closes_behind_as_many_as_are_refused_in_a_row() -> None:
    gate = EncoderGate(most_refused=2)
    gate.begin_step(is_running=True)
    for is_refused, is_closed in ((True, False), (False, False), (True, False), (True, True)):
        gate.answered(is_refused)
        assert gate.is_closed == is_closed
    assert gate.end_step() and not gate.is_closed
    gate.begin_step(is_running=True)
    assert not gate.is_closed
    closed(gate)
    gate.begin_step(is_running=True)
    assert not gate.is_closed, "a step that ended with an error leaves nothing behind"


def test_it_stays_open_for_those_without_images_and_where_nobody_runs() -> None:
    gate = EncoderGate(most_refused=2)
    gate.counted(has_encoder_inputs=False, change=1)
    assert not closed(gate).is_closed
    gate.counted(has_encoder_inputs=False, change=-1)
    gate.counted(has_encoder_inputs=True, change=1)
    assert closed(gate).is_closed
    gate.begin_step(is_running=False)
    gate.answered(is_refused=True)
    gate.answered(is_refused=True)
    assert not gate.is_closed, "with nobody running the next step would be as this one"
