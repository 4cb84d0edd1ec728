# SPDX-License-Identifier: Apache-2.0
"""Costs of the machine at hand: fitted from timed steps, kept in a file."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_batchllm.calibrate.measurement import StepTimer, fit
from vllm_batchllm.errors import UsageError
from vllm_batchllm.simulate.calibration import CALIBRATION_FILE, Calibration
from vllm_batchllm.simulate.cost_model import Measured, MeasuredCosts, StepWork
from vllm_batchllm.simulate.step_costs import PLATFORM_COSTS

COSTS = MeasuredCosts(
    step_s=5e-3, prefill_s=8e-5, decode_s=4e-4, kv_s=3e-8, held_s=2e-7, pair_s=4e-8
)


def drawn_rows(
    costs: MeasuredCosts, noise: float, number: int = 400
) -> list[tuple[StepWork, float]]:
    """Steps of all kinds with the time that they take by `costs`, give or take."""
    rng = random.Random(1)
    rows = []
    for _ in range(number):
        decodes = rng.randrange(0, 200)
        tokens = decodes + rng.choice([0, 0, 100, 2000])
        kv = decodes * rng.randrange(100, 5000)
        work = StepWork(
            max(tokens, 1),
            decodes + 1,
            decodes,
            prefill_pairs=(tokens - decodes) * rng.randrange(50, 2000),
            decode_kv_tokens=kv,
            held_kv_tokens=rng.randrange(10_000, 200_000),
        )
        seconds = Measured(costs).time_of(work).total_s
        rows.append((work, seconds * (1 + noise * rng.uniform(-1, 1))))
    return rows


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "deep" / "calibration.json"
    monkeypatch.setenv(CALIBRATION_FILE, str(path))
    return path


@pytest.mark.parametrize(("noise", "within"), [(0.0, 1e-3), (0.1, 0.1)])
def test_known_costs_are_found_again(noise: float, within: float) -> None:
    found = fit(drawn_rows(COSTS, noise))
    for name in dataclasses.asdict(COSTS):
        assert getattr(found, name) == pytest.approx(getattr(COSTS, name), rel=within), name


def test_a_cost_that_no_step_shows_is_nothing() -> None:
    rows = [(StepWork(10 * n, 1, 0), 1.0 + n) for n in range(1, 19)]
    found = fit(rows)
    assert (found.decode_s, found.kv_s, found.held_s, found.pair_s) == (0, 0, 0, 0)
    assert found.step_s == pytest.approx(1.0) and found.prefill_s == pytest.approx(0.1)


def test_no_cost_is_below_nothing() -> None:
    rows = [(StepWork(10 * n, 1, 0), 1.0 / n) for n in range(1, 19)]
    assert fit(rows).prefill_s == 0


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="5 steps are too few to tell 6 costs from"):
        fit(drawn_rows(COSTS, 0, 5))


def test_what_is_saved_is_loaded(file: Path) -> None:
    made = Calibration(COSTS, "m", {"CPU": "x"}, 12)
    assert made.save() == file == Calibration.path()
    assert Calibration.load() == made
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_without_a_file_the_reference_run_serves(file: Path) -> None:
    loaded = Calibration.load()
    assert loaded.costs.step_s == PLATFORM_COSTS["cpu"].step_s and "reference" in loaded.model


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "[" * 100_000, '{"costs": {"step_s": 1}}',
     '{"costs": {"step_s": -1, "prefill_s": 1}, "model": "", "environment": {}, "num_steps": 1}'],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_the_way_out(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        Calibration.load()
    assert str(file) in str(caught.value) and "delete it, or calibrate again" in str(caught.value)


class FakeScheduler:
    """Gives out one step after the other; each takes a second to schedule."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.requests = {"a": SimpleNamespace(is_prefill_chunk=False)}
        self.counts = [8, 0, 1]
        self.block_size = 4
        pool = SimpleNamespace(num_gpu_blocks=11, get_num_free_blocks=lambda: 7)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        self.now_s += 1
        count = self.counts.pop(0)
        is_new = count == 8
        return SimpleNamespace(
            scheduled_new_reqs=[SimpleNamespace(req_id="a", num_computed_tokens=0)] * is_new,
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[], num_computed_tokens=[], resumed_req_ids=set()
            ),
            num_scheduled_tokens={"a": count} if count else {},
            total_num_scheduled_tokens=count,
        )


def test_a_step_lasts_until_the_next_one_is_scheduled() -> None:
    scheduler = FakeScheduler()
    with StepTimer(scheduler, lambda: scheduler.now_s) as timer:
        for pause in (10, 20, 30):
            scheduler.schedule()
            scheduler.now_s += pause
    assert [seconds for _, seconds in timer.rows] == [11, 31], "empty steps are no rows"
    assert [work.num_tokens for work, _ in timer.rows] == [8, 1]
    assert [work.num_sampled for work, _ in timer.rows] == [1, 1]
    assert [work.held_kv_tokens for work, _ in timer.rows] == [12, 12], "the null block is nobody's"


def test_the_timer_leaves_the_scheduler_as_it_was() -> None:
    scheduler = FakeScheduler()
    with StepTimer(scheduler):
        assert "schedule" in vars(scheduler)
    assert "schedule" not in vars(scheduler)
    shadow = scheduler.schedule = lambda: None  # another watcher, as of `bench`
    with StepTimer(scheduler):
        pass
    assert scheduler.schedule is shadow
