# SPDX-License-Identifier: Apache-2.0
"""The JSON is the whole record; Markdown and picture are drawn from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_batchllm.bench.plots import plot_results
from vllm_batchllm.bench.report import (
    Report,
    markdown,
    report_from_dict,
    report_to_dict,
    write_report,
)
from vllm_batchllm.bench.tables import summary_header, summary_rows
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.metrics import (
    ABResult,
    Difference,
    OutputMatch,
    RunInputs,
    run_metrics,
)
from vllm_batchllm.measure.recorder import StepRecord

ARMS = ("stock", "sorted", "batchllm")
MAKESPANS = {"stock": (9.0, 6.0, 8.0), "sorted": (3.0, 3.0, 2.0), "batchllm": (3.0, 2.0, 2.0)}
INPUTS = RunInputs(num_requests=4, prompt_tokens=100, output_tokens=8, optimal_saved_tokens=50)


def result_of(name: str, differences: tuple[Difference, ...] = ()) -> ABResult:
    runs = []
    for index in range(3):
        for arm in ARMS:
            record = StepRecord([60, 30, 2], 90, 10, preemptions=2)
            runs.append(run_metrics(arm, index, INPUTS, record, MAKESPANS[arm][index]))
    matches = tuple(
        OutputMatch(arm, 12, 12 - len(differences), 0, differences if arm == "sorted" else ())
        for arm in ARMS
    )
    workload = {
        "name": name, "description": "a shape", "seed": 0, "scale": 8.0, "num_requests": 4,
        "prompt_tokens": 100, "output_tokens": 8, "pressure": 2.0, "block_size": 32,
    }  # fmt: skip
    return ABResult(workload, {"kv_blocks": 77}, ARMS, tuple(runs), matches)


REPORT = Report(
    results=(result_of("one"), result_of("two")),
    environment={"CPU": "some, 2 cores"},
    command="vllm-batchllm bench one two",
    failures=(("three", "engine refused"),),
)


def test_json_holds_everything() -> None:
    text = json.dumps(report_to_dict(REPORT))
    assert report_from_dict(json.loads(text)) == REPORT


def test_json_of_another_schema_is_refused() -> None:
    with pytest.raises(UsageError, match="schema 99"):
        report_from_dict(report_to_dict(REPORT) | {"schema": 99})


def test_json_adds_medians_and_ratios_for_other_readers() -> None:
    one = report_to_dict(REPORT)["results"][0]
    assert one["medians"]["stock"]["makespan_s"] == 8.0
    assert [ratio["median"] for ratio in one["paired_ratios"]] == [3.0, 1.0]
    assert one["output_match"] == {"stock": 1.0, "sorted": 1.0, "batchllm": 1.0}


def test_summary_has_a_row_per_workload_with_medians_and_spread() -> None:
    header, rows = summary_header(REPORT.results), summary_rows(REPORT.results)
    first = dict(zip(header, rows[0], strict=True))
    assert len(rows) == 2
    assert first["workload"] == "one"
    assert first["KV blocks"] == "77"
    assert first["stock, s"] == "8.00"
    assert first["stock / batchllm"] == "3.00 (3.00–4.00)"
    assert first["reuse, batchllm"] == "0.2000"
    assert first["output match"] == "100.00%"


def test_markdown_names_machine_command_failures_and_differences() -> None:
    difference = Difference("sorted", 1, 3, 7, 11, 12, None, False)
    report = Report((result_of("one", (difference,)),), {"CPU": "some"}, "cmd", REPORT.failures)
    text = markdown(report)
    assert "- CPU: some" in text and "`cmd`" in text
    assert "three failed: engine refused" in text
    assert "request 3 differs from stock at output token 7 (12 instead of 11)" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in tables if line.startswith("| stock")}
    assert len(widths) == 1


def test_a_report_is_three_files_and_no_leftovers(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "deep" / "out")
    names = sorted(path.name for path in (tmp_path / "deep" / "out").iterdir())
    assert names == ["bench.json", "bench.md", "bench.png"]


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        write_report(REPORT, tmp_path / "file" / "out")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pictures_of_one_and_of_many(tmp_path: Path, count: int) -> None:
    path = tmp_path / "p.png"
    plot_results([result_of(f"w{index}") for index in range(count)], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_there_is_no_picture_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results"):
        plot_results([], tmp_path / "p.png")
