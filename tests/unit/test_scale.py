# SPDX-License-Identifier: Apache-2.0
"""The command that measures scale, at tiny sizes, and what its report says."""

from __future__ import annotations

import contextlib
import importlib
import io
import json

import pytest
import scale
from forest_scale import PLANNERS, measure
from hashed_requests import hashed, main_prompts, main_requests, nested_requests
from scale_report import exponents, growth_exponent, report


def run_here(script, arguments):
    """As ``run_apart``, in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        importlib.import_module(script).main(arguments)
    return [json.loads(line) for line in printed.getvalue().splitlines()]


def row(num_requests: int, total_s: float, hashing_s: float, extrapolated: bool = False) -> dict:
    return {
        "num_requests": num_requests,
        "num_prompt_tokens": 2200 * num_requests,
        "total_s": total_s,
        "mean_us_per_request": total_s / num_requests * 1e6,
        "hashing_s": hashing_s,
        "hashing_is_extrapolated": extrapolated,
        "memory_gb_beside_hash_lists": num_requests / 1e6,
        "hash_lists_gb": num_requests / 1e5,
    }


def test_one_command_measures_all_and_leaves_raw_results_a_table_and_a_plot(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(scale, "run_apart", run_here)
    monkeypatch.setattr(scale, "WAITING", (40,))
    sizes = ["--max-requests", "48", "--max-running", "4", "--steps", "5", "--warmup", "3"]
    scale.main(["--out", str(tmp_path), "--quick", *sizes])
    results = json.loads((tmp_path / "scale.json").read_text())
    assert [each["num_requests"] for each in results["planning"]] == [12, 48]
    assert all(each["hashing_s"] > 0 for each in results["planning"])
    assert results["planning"][1]["num_prompt_tokens"] == 48 * 2200
    assert results["industry"][0]["total_s"] > 0
    (steps,) = results["steps"]
    assert steps["num_waiting"] == 40 and steps["stock_mean_running"] == 4
    assert steps["stock_mean_admitted"] == steps["batchllm_mean_admitted"]
    assert "| 48 | 105,600 |" in (tmp_path / "scale.md").read_text()
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    assert "Industry shape" in capsys.readouterr().out


def test_an_interrupted_run_leaves_what_it_has_measured(tmp_path, monkeypatch) -> None:
    def stops(script, arguments):
        size = int(arguments[arguments.index("--requests") + 1])
        if size > 3000:
            raise KeyboardInterrupt
        return [row(size, 1.0, 2.0)]

    monkeypatch.setattr(scale, "run_apart", stops)
    with pytest.raises(KeyboardInterrupt):
        scale.main(["--out", str(tmp_path), "--max-requests", "10000"])
    results = json.loads((tmp_path / "scale.json").read_text())
    assert [each["num_requests"] for each in results["planning"]] == [1000, 3000]


def test_hashing_that_would_take_too_long_is_extrapolated_and_marked(monkeypatch) -> None:
    asked = []

    def run(script, arguments):
        size = int(arguments[arguments.index("--requests") + 1])
        made = "made" in arguments
        asked.append((size, made))
        return [row(size, 1.0, size * 1e-3) | ({"hashing_s": None} if made else {})]

    monkeypatch.setattr(scale, "run_apart", run)
    rows = list(scale.planning_rows([1000, 2000, 20_000], 1, max_hashing_s=10.0))
    assert asked == [(1000, False), (2000, False), (20_000, True)]
    assert [each["hashing_s"] for each in rows] == [1.0, 2.0, 20.0]
    assert [each["hashing_is_extrapolated"] for each in rows] == [False, False, True]


def test_the_report_marks_what_was_extrapolated_and_fits_only_what_was_measured() -> None:
    rows = [row(1000, 0.01, 1.0), row(10_000, 0.1, 10.0), row(100_000, 1.0, 5000.0, True)]
    found = exponents(rows)
    assert found["planning"] == pytest.approx(1.0)
    assert found["planning and hashing"] == pytest.approx(1.0)
    text = report({"planning": rows, "industry": [row(8000, 0.2, 2.0)], "steps": []})
    lines = [line for line in text.splitlines() if "extrapolated" in line]
    assert len(lines) == 1 and lines[0].startswith("| 100,000 |")
    assert "any makespan from 400 s on" in text


@pytest.mark.parametrize("power", [0.5, 1.0, 1.3])
def test_the_exponent_is_that_of_a_power_law(power) -> None:
    sizes = [1e3, 1e4, 3e5]
    assert growth_exponent(sizes, [2 * n**power for n in sizes]) == pytest.approx(power)


@pytest.mark.parametrize(("sizes", "values"), [([10], [1]), ([10, 20], [0, 1])])
def test_an_exponent_of_nothing_is_refused(sizes, values) -> None:
    with pytest.raises(ValueError, match="an exponent needs"):
        growth_exponent(sizes, values)


def test_made_up_hashes_share_what_those_of_vllm_share() -> None:
    real, seconds = hashed(main_prompts(40), 16)
    made = main_requests(40, 16)
    assert seconds > 0
    for requests in (real, made):
        assert {len(request.block_hashes) for request in requests} == {137}
        prefixes = [request.block_hashes[124] for request in requests]
        assert sorted(map(prefixes.count, set(prefixes))) == [8, 16, 16]
        assert len({request.block_hashes[125] for request in requests}) == 40


@pytest.mark.parametrize("through", [*PLANNERS])
def test_planning_is_measured_through_the_line_and_through_the_queue(through) -> None:
    result = measure(nested_requests(200, 8, 16), "dfs", 16, through, repeats=2)
    assert len(result["totals_s"]) == 2
    assert result["total_s"] > 0
