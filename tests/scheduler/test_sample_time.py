# SPDX-License-Identifier: Apache-2.0
"""What a sample's time says of the whole: in proportion until nobody waits, and the end once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vllm_batchllm.simulate.arms import Arm, find_arm
from vllm_batchllm.simulate.run import SimulatedRun, run_arm
from vllm_batchllm.simulate.sample_time import whole_time
from vllm_batchllm.simulate.setup import SetupOptions, make_setup
from vllm_batchllm.simulate.show import table, whole_clause
from vllm_batchllm.simulate.suite import SimulationReport, describe, report_to_dict, simulate
from vllm_batchllm.workloads.batch import Batch

STOCK, OURS = find_arm("stock"), find_arm("batchllm")
SEQS = 16


def drawn(num: int, sample_of: int | None = None) -> Batch:
    draw = np.random.default_rng(1)
    prompts = [draw.integers(3, 5000, 200).tolist() for _ in range(num)]
    return Batch("drawn", prompts, draw.integers(20, 60, num).tolist(), sample_of=sample_of)


def ran(batch: Batch, arm: Arm) -> SimulatedRun:
    setup = make_setup(batch, SetupOptions(max_num_seqs=SEQS))
    return run_arm(batch, arm, setup.sizes, setup.costs, 0)


@pytest.mark.parametrize("arm", [STOCK, OURS], ids=["stock", "ours"])
def test_the_whole_by_a_tenth_of_it(arm: Arm) -> None:
    part, whole = drawn(80), ran(drawn(800), arm)
    run = ran(part, arm)
    found = whole_time(run, describe(replace(part, sample_of=800)))
    assert found is not None
    assert found.seconds == pytest.approx(
        whole.metrics.makespan_s, rel=min(0.06, found.error_ratio)
    )
    plainly_s = 10 * run.metrics.makespan_s
    assert abs(found.seconds - whole.metrics.makespan_s) < abs(plainly_s - whole.metrics.makespan_s)


def test_the_end_begins_when_nobody_waits_any_more() -> None:
    assert ran(drawn(SEQS), STOCK).drain_s == pytest.approx(
        ran(drawn(SEQS), STOCK).metrics.makespan_s
    )
    many = ran(drawn(200), STOCK)
    assert 0 < many.drain_s < 0.2 * many.metrics.makespan_s


def test_what_is_no_sample_says_nothing_of_a_whole() -> None:
    batch = drawn(20)
    assert whole_time(ran(batch, STOCK), describe(batch)) is None
    assert "sample_of" not in describe(batch)


def test_below_the_table_stands_what_the_whole_takes_only_with_a_sample() -> None:
    setup = make_setup(drawn(40), SetupOptions(max_num_seqs=SEQS))
    for sample_of in (None, 4000):
        batch = drawn(40, sample_of)
        report = SimulationReport((simulate(batch, [STOCK, OURS], setup),))
        (result,) = report.results
        said = whole_clause(result)
        assert bool(said) == (sample_of is not None)
        assert str(table(report, result).caption).endswith(said)
        (record,) = report_to_dict(report)["results"]
        assert all(("whole_makespan" in run) == (sample_of is not None) for run in record["runs"])
    assert said.startswith("\nall 4,000 requests take about: stock ≥ ") and "batchllm" in said
