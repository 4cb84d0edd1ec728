# SPDX-License-Identifier: Apache-2.0
"""The page of a simulation: every figure of the table, pictures of what ran, opened once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from page_model import Reader
from test_page_browser import CHROMIUM, INSTALL, browse

from vllm_batchllm.errors import UsageError
from vllm_batchllm.page.page import render_page
from vllm_batchllm.page.parts import stacked_parts
from vllm_batchllm.simulate.arms import find_arm
from vllm_batchllm.simulate.page import PARTS, page_writer, simulation_page
from vllm_batchllm.simulate.setup import SetupOptions, make_setup
from vllm_batchllm.simulate.show import header, rows
from vllm_batchllm.simulate.suite import Simulation, SimulationReport, simulate
from vllm_batchllm.workloads.catalog import make_workload

SCRIPT = "<script>alert(1)</script>"
BATCHES = [make_workload(name, scale=32, num_requests=24) for name in ("mixed", "tree-3")]
SETUP = make_setup(BATCHES[0], SetupOptions(kv_blocks=60))


@cache
def results() -> tuple[Simulation, ...]:
    arms = [find_arm(name) for name in ("stock", "sorted", "batchllm")]
    return tuple(simulate(batch, arms, SETUP) for batch in BATCHES)


def report(num_results: int = 2, num_runs: int = 3) -> SimulationReport:
    done = tuple(replace(one, runs=one.runs[:num_runs]) for one in results()[:num_results])
    return SimulationReport(done, {"CPU": "x"}, "vllm-batchllm simulate mixed", 2.0)


def titles(made: SimulationReport) -> list[str]:
    sections = simulation_page(made).sections
    return [drawing.title for section in sections for drawing in section.figures]


def test_every_figure_of_the_table_is_on_the_page() -> None:
    made = report()
    text = render_page(simulation_page(made))
    shown = {*Reader(text, inside="td").texts, *Reader(text, inside="th").texts}
    assert set(header(made)) <= shown
    for result in made.results:
        assert {cell for row in rows(made, result) for cell in row} <= shown
    assert made.command in Reader(text, inside="code").texts
    assert "CPU" in shown and "x" in shown


def test_several_batches_are_compared_and_then_shown_one_by_one() -> None:
    page = simulation_page(report())
    assert [section.title for section in page.sections] == ["All batches", "mixed", "tree-3"]
    alone = simulation_page(report(1))
    assert [section.title for section in alone.sections] == ["mixed"]
    assert len(alone.sections[0].figures) == 5


def test_the_summary_tells_speeds_the_bound_and_what_was_simulated() -> None:
    made = report(1)
    lines = simulation_page(made).summary
    (result,) = made.results
    assert f"batchllm against sorted: {result.speed_over('batchllm'):.3f} times as fast." in lines
    assert any(line.startswith("With vLLM's attention kernels, no schedule") for line in lines)
    assert "Simulated: Llama-3.1-8B on 1 x A100-80GB." in lines


def test_the_first_finished_arm_is_a_page_already() -> None:
    assert "How many times as fast as sorted" not in titles(report(1, num_runs=1))
    assert "Where the time goes" in titles(report(1, num_runs=1))
    assert "no results" in render_page(simulation_page(SimulationReport()))


def test_where_the_time_goes_is_told_in_words_and_nothing_is_drawn_for_nothing() -> None:
    (figure,) = [
        drawing
        for section in simulation_page(report(1)).sections
        for drawing in section.figures
        if drawing.title == "Where the time goes"
    ]
    assert PARTS["decode_attention_s"] in figure.alt
    assert PARTS["communication_s"] not in figure.alt, "one device talks to nobody"


def test_parts_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="1 lengths of 'part' for 2 arms"):
        stacked_parts(["a", "b"], {"part": [1.0]}, "s")
    with pytest.raises(ValueError, match="no results"):
        stacked_parts([], {}, "s")


def test_names_are_text() -> None:
    made = report(1)
    (result,) = made.results
    evil = replace(result, workload={**result.workload, "name": SCRIPT, "description": SCRIPT},
                   engine={**result.engine, "model": SCRIPT, "device": SCRIPT})  # fmt: skip
    text = render_page(simulation_page(replace(made, results=(evil,), command=SCRIPT)))
    assert "script" not in {tag for tag, _ in Reader(text).tags}
    assert SCRIPT in Reader(text, inside="h2").texts


def test_the_writer_draws_the_prefixes_of_each_batch_that_has_begun(tmp_path: Path) -> None:
    write = page_writer(tmp_path, [(batch, SETUP) for batch in BATCHES])
    for number in (1, 2):
        write(report(number))
        text = (tmp_path / "index.html").read_text(encoding="utf-8")
        title = "Prefixes that requests share, the widest groups</figcaption>"
        assert text.count(title) == number


def test_a_folder_that_is_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--report: cannot write a page into"):
        page_writer(tmp_path / "file", [])


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason=INSTALL)
def test_a_page_opens_silently_and_completely(tmp_path: Path) -> None:
    page_writer(tmp_path, [(batch, SETUP) for batch in BATCHES])(report())
    visit = browse((tmp_path / "index.html").as_uri(), tmp_path)
    assert (visit.console, visit.requests) == ([], [])
    assert "(lower bound)" in Reader(visit.dom, inside="th").texts
    assert visit.dom.count("<svg") == 2 + 2 * 4
