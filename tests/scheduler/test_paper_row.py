# SPDX-License-Identifier: Apache-2.0
"""A recorded row of the simulated tables, simulated again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from check import ROWS, repeatable
from sim_rows import Row, run_row

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "paper" / "check.json"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.arm)
def test_a_row_repeats_to_the_last_digit(row: Row) -> None:
    recorded = {item["row"]["arm"]: item for item in json.loads(RECORD.read_text())["rows"]}
    again = json.loads(json.dumps(run_row(row)))
    assert repeatable(again) == repeatable(recorded[row.arm]), "run `make paper` again"
