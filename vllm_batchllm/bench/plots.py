# SPDX-License-Identifier: Apache-2.0
"""One picture per report: how much faster, and what the steps looked like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_batchllm.measure.metrics import ABResult, RunMetrics
from vllm_batchllm.page.bars import Spread, add_legend, draw_ratios
from vllm_batchllm.page.palette import arm_colours
from vllm_batchllm.page.strips import Strip, draw_strips

_PROFILES_PER_ROW = 3
_DPI = 120
_PROFILE_HEIGHT = 3.2


def plot_results(results: Sequence[ABResult], path: Path) -> None:
    """Write a PNG: paired ratios as bars, and each workload's tokens-per-step profile.

    Bars are medians over rounds with whiskers from the least to the greatest; profiles are of
    the last round. The file is replaced as a whole.

    Raises:
        ValueError: there are no results.
        OSError: the file cannot be written.
    """
    if not results:
        raise ValueError("there are no results to plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_PROFILES_PER_ROW, len(results))
    profile_rows = -(-len(results) // columns)
    bar_height = 1.1 + 0.55 * len(results)
    figure = Figure(
        figsize=(max(8.0, 4.6 * columns), bar_height + _PROFILE_HEIGHT * profile_rows),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        profile_rows + 1, columns, height_ratios=[bar_height, *[_PROFILE_HEIGHT] * profile_rows]
    )
    axes = figure.add_subplot(grid[0, :])
    draw_ratios(axes, names_of(results), ratio_series(results), ratio_label(results))
    add_legend(axes, list(ratio_series(results)))
    for index, result in enumerate(results):
        place = grid[1 + index // columns, index % columns]
        _draw_profiles(figure, place, result)
    partial = path.with_name(f".{path.name}.part")
    figure.savefig(partial, dpi=_DPI, format="png")
    os.replace(partial, path)


def names_of(results: Sequence[ABResult]) -> list[str]:
    """The workloads' names."""
    return [str(result.workload["name"]) for result in results]


def ratio_series(results: Sequence[ABResult]) -> dict[str, list[Spread | None]]:
    """Per slower arm its paired ratio on each workload: median, least, greatest."""
    found = [{ratio.slower: ratio for ratio in result.ratios()} for result in results]
    return {
        arm: [
            (ratio.median, ratio.min, ratio.max) if (ratio := ratios.get(arm)) else None
            for ratios in found
        ]
        for arm in dict.fromkeys(arm for ratios in found for arm in ratios)
    }


def ratio_label(results: Sequence[ABResult]) -> str:
    """What the ratios of `ratio_series` say."""
    faster = results[0].ratios()[0].faster if results[0].ratios() else results[0].arms[0]
    return f"makespan of the arm / makespan of {faster}, same round (above 1: slower)"


def last_runs(result: ABResult) -> list[RunMetrics]:
    """The run of the last round, of each arm."""
    return [
        max((run for run in result.runs if run.arm == arm), key=lambda run: run.round)
        for arm in result.arms
    ]


def _draw_profiles(figure: Any, place: Any, result: ABResult) -> None:
    runs = last_runs(result)
    colours = arm_colours(result.arms)
    strips = [
        Strip(f"{run.arm}: {run.steps} steps, {run.makespan_s:.1f} s", colours[run.arm],
              run.step_tokens)
        for run in runs
    ]  # fmt: skip
    highest = max(max(run.step_tokens, default=1) for run in runs)
    top_axes = draw_strips(figure, place, strips, top=highest)[0]
    top_axes.set_title(f"{result.workload['name']}: tokens in each step", fontsize=9)
