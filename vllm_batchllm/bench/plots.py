# SPDX-License-Identifier: Apache-2.0
"""One picture per report: how much faster, and what the steps looked like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_batchllm.bench.metrics import ABResult, RunMetrics

_COLOURS = {"stock": "#8a8f98", "sorted": "#3b7dd8", "batchllm": "#e07b00"}
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
    _draw_ratios(figure.add_subplot(grid[0, :]), results)
    for index, result in enumerate(results):
        place = grid[1 + index // columns, index % columns]
        _draw_profiles(figure, place, result)
    partial = path.with_name(f".{path.name}.part")
    figure.savefig(partial, dpi=_DPI, format="png")
    os.replace(partial, path)


def _draw_ratios(axes: Any, results: Sequence[ABResult]) -> None:
    names = [str(result.workload["name"]) for result in results]
    slower = list(dict.fromkeys(ratio.slower for result in results for ratio in result.ratios()))
    height = 0.8 / max(1, len(slower))
    widest = 1.0
    for offset, arm in enumerate(slower):
        for row, result in enumerate(results):
            for ratio in result.ratios():
                if ratio.slower != arm:
                    continue
                y = row + (offset - (len(slower) - 1) / 2) * height
                spread = [[ratio.median - ratio.min], [ratio.max - ratio.median]]
                axes.barh(y, ratio.median, height * 0.9, color=_COLOURS[arm], xerr=spread,
                          error_kw={"lw": 1, "capsize": 2})  # fmt: skip
                axes.text(ratio.max, y, f" {ratio.median:.2f}", va="center", fontsize=8)
                widest = max(widest, ratio.max)
    axes.axvline(1.0, color="black", lw=1)
    axes.set_xlim(0, widest * 1.12)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    faster = results[0].ratios()[0].faster if results[0].ratios() else results[0].arms[0]
    axes.set_xlabel(f"makespan of the arm / makespan of {faster}, same round (above 1: slower)")
    handles = [axes.barh(0, 0, color=_COLOURS[arm], label=arm) for arm in slower]
    if handles:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _draw_profiles(figure: Any, place: Any, result: ABResult) -> None:
    """One strip per arm under each other, with common axes, so that none hides another."""
    runs = [_last_run(result, arm) for arm in result.arms]
    strips = place.subgridspec(len(runs), 1, hspace=0.0)
    num_steps = max(run.steps for run in runs)
    highest = max(max(run.step_tokens, default=1) for run in runs)
    for index, run in enumerate(runs):
        axes = figure.add_subplot(strips[index])
        axes.fill_between(
            range(run.steps), run.step_tokens, step="mid", color=_COLOURS[run.arm], lw=0.5
        )
        axes.set_xlim(-1, num_steps)
        axes.set_ylim(0, highest * 1.05)
        axes.tick_params(labelsize=7, labelbottom=index == len(runs) - 1)
        label = f"{run.arm}: {run.steps} steps, {run.makespan_s:.1f} s"
        axes.text(0.99, 0.86, label, transform=axes.transAxes, ha="right", va="top", fontsize=7,
                  bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1})  # fmt: skip
        if index == 0:
            axes.set_title(f"{result.workload['name']}: tokens in each step", fontsize=9)
    axes.set_xlabel("step", fontsize=8)


def _last_run(result: ABResult, arm: str) -> RunMetrics:
    return max((run for run in result.runs if run.arm == arm), key=lambda run: run.round)
