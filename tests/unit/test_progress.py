# SPDX-License-Identifier: Apache-2.0
"""Progress: a bar on a terminal, a plain line now and then elsewhere; a long benchmark is foretold."""

from __future__ import annotations

import io

from vllm_batchllm.bench.pace import Pace
from vllm_batchllm.bench.pace import Progress as Event
from vllm_batchllm.bench.progress import Shown
from vllm_batchllm.measure.progress import LINE_EVERY_S, Progress, time_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_file_gets_a_line_now_and_then_and_no_bar() -> None:
    file, clock = io.StringIO(), Clock()
    with Progress(400, "requests", file, clock) as shown:
        shown.describe("industry: stock")
        for _ in range(100):
            clock.now_s += LINE_EVERY_S / 50
            shown.advance()
    assert file.getvalue().splitlines() == [
        "industry: stock: 50 of 400 requests, about 4 min left",
        "industry: stock: 100 of 400 requests, about 3 min left",
    ]


def test_a_short_run_leaves_a_file_empty() -> None:
    file = io.StringIO()
    with Progress(10, "requests", file, Clock()) as shown:
        shown.advance(10)
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar_and_lines_that_stay() -> None:
    terminal = Terminal()
    with Progress(10, "requests", terminal, Clock()) as shown:
        shown.describe("industry")
        shown.advance(4)
        shown.say("done with one")
    assert "%|" in terminal.getvalue() and "done with one\n" in terminal.getvalue()


def test_times_are_as_long_as_what_is_known() -> None:
    assert [time_text(s) for s in (0.2, 42, 170, 9000)] == ["1 s", "42 s", "3 min", "2.5 h"]


def told(*paces: Pace, num_sharing: int = 3, num_runs: int = 9) -> list[str]:
    stream = io.StringIO()
    with Shown(lambda total, unit: Progress(total, unit, stream, Clock()), stream) as shown:
        shown.on_progress(Event("decode-heavy", "round 1 of 3, stock", 0, num_runs))
        for pace in paces:
            event = Event("decode-heavy", "", 0, num_runs, None, pace, num_sharing)
            shown.on_progress(event)
    return stream.getvalue().splitlines()


def test_a_long_benchmark_is_foretold_once_by_its_first_steps() -> None:
    begun, *lines = told(Pace(10, 1000, 1.0), Pace(100, 1000, 10.0), Pace(200, 1000, 20.0))
    assert begun == "decode-heavy: round 1 of 3, stock"
    assert lines == ["decode-heavy: 9 runs will take about 5 min, by the first steps"]


def test_a_long_warm_up_is_foretold_too() -> None:
    lines = told(Pace(50, 1000, 6.0), num_sharing=0)
    assert lines[1:] == ["decode-heavy: warming up will take about 2 min, by the first steps"]


def test_a_short_one_is_not() -> None:
    assert len(told(Pace(500, 1000, 6.0))) == 1
