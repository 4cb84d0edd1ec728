# SPDX-License-Identifier: Apache-2.0
"""Grouped bars on matplotlib axes: a row per name, a bar per arm. For pages and for PNGs alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_batchllm.page.palette import arm_colours
from vllm_batchllm.page.svg import clean

Spread = tuple[float, float, float]
"""Median, least and greatest of a figure."""
_NEAR = 0.09  # of a bar's end, in its own unit: about the width of a text behind it
_ROW_SHARE = 0.8  # of a row's height; the rest parts it from the next


def draw_bars(
    axes: Any,
    names: Sequence[str],
    series: Mapping[str, Sequence[Spread | None]],
    written: Callable[[float], str],
    marks: Sequence[float] = (),
) -> None:
    """Draw a bar up to each median, with a whisker where least and greatest differ from it.

    Args:
        axes: matplotlib's; the first name is drawn on top.
        names: of the rows.
        series: per arm one spread for each name, None where it has none.
        written: how the median is written behind the bar.
        marks: where something else is drawn across each row; texts make room for it.

    Raises:
        ValueError: a series has another length than `names`.
    """
    colours = arm_colours(series)
    height = _ROW_SHARE / max(1, len(series))
    least = greatest = 0.0
    for number, (arm, spreads) in enumerate(series.items()):
        offset = (number - (len(series) - 1) / 2) * height
        if len(spreads) != len(names):
            raise ValueError(f"{len(spreads)} bars of {arm!r} for {len(names)} names")
        for row, spread in enumerate(spreads):
            if spread is None:
                continue
            _bar(axes, row + offset, spread, height * 0.9, colours[arm])
            end = max(0.0, spread[0], spread[2])
            if marks and end <= marks[row] <= end + _NEAR:
                end = marks[row]
            axes.annotate(written(spread[0]), (end, row + offset), (3, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
            least, greatest = min(least, *spread), max(greatest, *spread)
    axes.set_xlim(least * 1.05, (greatest or 1.0) * 1.1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [clean(name, 40) for name in names])
    axes.tick_params(axis="y", length=0)


def _bar(axes: Any, y: float, spread: Spread, height: float, colour: str) -> None:
    median, least, greatest = spread
    whisker = {}
    if least < median or greatest > median:
        whisker = {
            "xerr": [[median - least], [greatest - median]],
            "ecolor": axes.xaxis.label.get_color(),
            "error_kw": {"lw": 1, "capsize": 2},
        }
    axes.barh(y, median, height, color=colour, **whisker)


def draw_ratios(
    axes: Any,
    names: Sequence[str],
    series: Mapping[str, Sequence[Spread | None]],
    xlabel: str,
) -> None:
    """Draw ratios as bars, with a line at 1 that tells better from worse.

    Raises:
        ValueError: a series has another length than `names`.
    """
    draw_bars(axes, names, series, lambda value: f"{value:.2f}")
    axes.axvline(1.0, color=axes.xaxis.label.get_color(), lw=1)
    low, high = axes.get_xlim()
    axes.set_xlim(low, max(high, 1.1))
    axes.set_xlabel(clean(xlabel, 120))
    add_legend(axes, list(series))


def add_legend(axes: Any, arms: Sequence[str], *further: Any) -> None:
    """Name the arms, and what else is handed over as matplotlib handles, above the axes."""
    from matplotlib.patches import Patch

    colours = arm_colours(arms)
    handles = [Patch(color=colours[arm], label=clean(arm, 30)) for arm in arms]
    if handles or further:
        axes.legend(
            handles=[*handles, *further],
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=min(4, len(handles) + len(further)),
            fontsize=8,
            frameon=False,
            borderaxespad=0.2,
        )
