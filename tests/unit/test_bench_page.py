# SPDX-License-Identifier: Apache-2.0
"""The page of a benchmark: every figure of a recorded run, and the command that writes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from page_model import Reader
from typer.testing import CliRunner

from vllm_batchllm.bench import command, suite
from vllm_batchllm.bench.page import bench_page
from vllm_batchllm.bench.report import Report, report_from_dict, report_to_dict
from vllm_batchllm.bench.tables import detail_rows, summary_rows
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.metrics import ABResult, Difference, OutputMatch
from vllm_batchllm.page.icicle import GroupBox
from vllm_batchllm.page.page import render_page

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks" / "results" / "cpu-2-cores" / "admission" / "second" / "bench.json"
SCRIPT = "<script>alert(1)</script>"


def recorded(num_results: int = 2) -> Report:
    """A run on real engines, from before steps had their KV blocks recorded."""
    report = report_from_dict(json.loads(RECORD.read_text()))
    return replace(report, results=report.results[:num_results])


def with_kv_blocks(result: ABResult) -> ABResult:
    runs = [replace(run, step_kv_blocks=tuple(range(run.steps))) for run in result.runs]
    return replace(result, runs=tuple(runs))


def titles(report: Report, **groups: Any) -> list[str]:
    page = bench_page(report, groups)
    return [drawing.title for section in page.sections for drawing in section.figures]


def test_every_figure_of_the_tables_is_on_the_page() -> None:
    report = recorded()
    text = render_page(bench_page(report))
    shown = {*Reader(text, inside="td").texts, *Reader(text, inside="th").texts}
    for rows in (summary_rows(report.results), *map(detail_rows, report.results)):
        assert {cell for row in rows for cell in row} <= shown
    assert report.command in Reader(text, inside="code").texts
    assert set(report.environment.values()) <= shown


def test_a_page_has_a_section_for_all_and_one_for_each() -> None:
    report = recorded()
    names = [section.title for section in bench_page(report).sections]
    assert names == ["All workloads", *(result.workload["name"] for result in report.results)]


def test_pictures_are_drawn_of_what_was_recorded() -> None:
    report = recorded(1)
    name = report.results[0].workload["name"]
    before = titles(report)
    assert len(before) == 3 and not any("KV" in title for title in before)
    report = replace(report, results=tuple(map(with_kv_blocks, report.results)))
    after = titles(report, **{name: (GroupBox("g", 64, 3),)})
    assert any("KV blocks" in title for title in after)
    assert any("Prefixes" in title for title in after) and len(after) == 5


def test_kv_blocks_of_each_step_are_read_back() -> None:
    report = replace(recorded(1), results=(with_kv_blocks(recorded(1).results[0]),))
    assert report_from_dict(json.loads(json.dumps(report_to_dict(report)))) == report


def test_the_summary_tells_speed_differences_and_failures() -> None:
    result = recorded(1).results[0]
    difference = Difference("batchllm", 0, 3, 7, 11, 12, None, False)
    different = replace(result, matches=(OutputMatch("batchllm", 4, 3, 0, (difference,)),))
    report = Report((different,), {}, "", (("other", "engine refused"),))
    page = bench_page(report)
    lines = "\n".join(page.summary)
    assert "batchllm against stock: " in lines and "times as fast" in lines
    assert "1 output differs" in lines and "other failed: engine refused" in lines
    text = render_page(page)
    assert "request 3 differs from stock at output token 7" in text
    assert "engine refused" in Reader(text, inside="td").texts


def test_a_report_of_failures_alone_is_a_page() -> None:
    text = render_page(bench_page(Report((), {}, "cmd", (("a", "no memory"),))))
    assert "a failed: no memory" in text


def test_one_arm_alone_has_no_ratios() -> None:
    result = recorded(1).results[0]
    runs = tuple(run for run in result.runs if run.arm == "stock")
    alone = replace(result, arms=("stock",), runs=runs, matches=())
    assert len(titles(Report((alone,), {}))) == 2


def test_names_of_workloads_models_and_options_are_text() -> None:
    result = recorded(1).results[0]
    evil = replace(
        result,
        workload={**result.workload, "name": SCRIPT, "description": SCRIPT},
        engine={**result.engine, "model": SCRIPT, "batchllm_options": [["order", SCRIPT]]},
    )
    page = bench_page(Report((evil,), {SCRIPT: SCRIPT}, SCRIPT, ((SCRIPT, SCRIPT),)))
    text = render_page(page)
    assert "script" not in {tag for tag, _ in Reader(text).tags}
    assert SCRIPT in Reader(text, inside="h2").texts
    assert f"model {SCRIPT}" in "".join(Reader(text, inside="p").texts)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command, whose engines answer with recorded results; `outcomes` may say otherwise."""
    outcomes: dict[str, BaseException] = {}
    result = recorded(1).results[0]
    calls: list[str] = []

    def saved_run(spec: Any, batch: Any, **_: Any) -> ABResult:
        calls.append(batch.name)
        if batch.name in outcomes:
            raise outcomes[batch.name]
        workload = {**result.workload, "name": batch.name}
        return replace(with_kv_blocks(result), workload=workload)

    monkeypatch.setattr(suite, "run_ab", saved_run)
    monkeypatch.setattr(command, "resolve_model", lambda _: ("m", 4096))
    monkeypatch.setattr(command, "prepare_environment", lambda: True)
    app = typer.Typer()
    app.command()(command.bench)

    def invoke(*arguments: str) -> Any:
        arguments = ("--num-requests", "32", "--out", str(tmp_path / "out"), *arguments)
        return CliRunner().invoke(app, [*arguments])

    invoke.outcomes, invoke.calls = outcomes, calls  # type: ignore[attr-defined]
    return invoke


def test_the_page_is_written_and_its_place_told_on_stderr(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    result = run("industry", "tree-3", "--report", str(folder))
    assert result.exit_code == 0, result.output
    assert f"page: {folder / 'index.html'}" in result.stderr
    assert "page:" not in result.stdout
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert Reader(text, inside="h2").texts[1:3] == ["industry", "tree-3"]
    assert text.count("Prefixes that requests share, the widest groups</figcaption>") == 2
    assert [path.name for path in folder.iterdir()] == ["index.html"]


def test_without_the_option_there_is_no_page(run: Any, tmp_path: Path) -> None:
    result = run("industry")
    assert "page:" not in result.stderr
    assert not list(tmp_path.rglob("index.html"))


def test_an_interrupted_run_leaves_the_finished_workloads(run: Any, tmp_path: Path) -> None:
    run.outcomes["tree-3"] = KeyboardInterrupt()
    result = run("industry", "tree-3", "--report", str(tmp_path))
    assert result.exit_code == 130
    assert "page: " in result.stderr
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "industry" in Reader(text, inside="h2").texts
    assert "tree-3" not in Reader(text, inside="h2").texts


def test_a_failed_workload_is_on_the_page(run: Any, tmp_path: Path) -> None:
    run.outcomes["industry"] = UsageError("engine refused")
    result = run("industry", "--report", str(tmp_path))
    assert result.exit_code == 1
    assert "industry failed: engine refused" in (tmp_path / "index.html").read_text()


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(
    run: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = run("industry", "--report", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert f"--report: cannot write a page into {tmp_path / 'file'}: " in result.stderr
    assert "File exists" in result.stderr
    assert run.calls == []
