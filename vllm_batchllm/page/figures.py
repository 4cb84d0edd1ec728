# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report, as pure functions from plain sequences to drawings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from vllm_batchllm.page.bars import Spread, add_legend, draw_bars, draw_ratios
from vllm_batchllm.page.page import Drawing
from vllm_batchllm.page.palette import BEST, arm_colours
from vllm_batchllm.page.strips import Strip, draw_strips
from vllm_batchllm.page.svg import clean, draw_svg

_WIDTH = 8.2  # inches
_BAR_HEIGHT, _ROW_GAP, _STRIP_HEIGHT = 0.2, 0.14, 0.85


def ratio_bars(
    names: Sequence[str],
    series: Mapping[str, Sequence[Spread | None]],
    xlabel: str,
    title: str = "Ratios",
) -> Drawing:
    """Paired ratios: per name and arm a bar to the median, a whisker from least to greatest.

    Args:
        names: of the rows, the first on top.
        series: per arm a (median, least, greatest) for each name, None where there is none.

    Raises:
        ValueError: no names, or a series of another length.
    """
    _check_names(names)
    told = [
        f"{arm} {clean(name)}: {spread[0]:.2f} ({spread[1]:.2f} to {spread[2]:.2f})"
        for arm, spreads in series.items()
        for name, spread in zip(names, spreads, strict=False)
        if spread is not None
    ]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        draw_ratios(axes, names, series, xlabel)
        add_legend(axes, list(series))

    svg = draw_svg(_bars_size(names, series), draw)
    return Drawing(title, _alt(f"Bars, {xlabel}", told), svg)


def saved_against_optimum(
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    optimum: Sequence[float],
    title: str = "Prompt tokens saved, against the best possible",
) -> Drawing:
    """Saved share of the prompt tokens per name and arm, with a mark at the best possible.

    Shares are 1 for everything; one below 0 (computed again after preemptions) is drawn so.

    Raises:
        ValueError: no names, or a sequence of another length.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    _check_names(names)
    if len(optimum) != len(names):
        raise ValueError(f"{len(optimum)} optima for {len(names)} names")
    spreads = {
        arm: [None if ratio is None else (ratio, ratio, ratio) for ratio in ratios]
        for arm, ratios in series.items()
    }

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        draw_bars(axes, names, spreads, lambda value: f"{value:.1%}", optimum)
        low, _ = axes.get_xlim()
        axes.set_xlim(low, 1.08)
        rows = range(len(names))
        axes.vlines(optimum, [row - 0.45 for row in rows], [row + 0.45 for row in rows],
                    color=BEST, lw=2)  # fmt: skip
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("prompt tokens that were not computed, share of all")
        add_legend(axes, list(series), Line2D([], [], color=BEST, lw=2, label="possible"))

    told = [
        f"possible {clean(name)}: {best:.1%}" for name, best in zip(names, optimum, strict=True)
    ]
    told += [
        f"{arm} {clean(name)}: {ratio:.1%}"
        for arm, ratios in series.items()
        for name, ratio in zip(names, ratios, strict=False)
        if ratio is not None
    ]
    alt = _alt("Bars, share of prompt tokens saved", told)
    return Drawing(title, alt, draw_svg(_bars_size(names, series), draw))


def step_profile(
    series: Mapping[str, Sequence[float]], ylabel: str, title: str = "Tokens in each step"
) -> Drawing:
    """What each step held, one strip per arm with common axes.

    Of more than 1,000 steps, 500 bins are drawn: the mean in full colour, the greatest value
    pale behind it. So a picture of 50,000 steps is no larger than one of 1,000.

    Raises:
        ValueError: no arm has a step.
    """
    top = max(chain.from_iterable(series.values()), default=0.0)
    return _strips(series, ylabel, title, float(top), percent=False)


def occupancy(
    series: Mapping[str, Sequence[float]],
    ylabel: str = "KV blocks held",
    title: str = "Share of KV blocks held after each step",
) -> Drawing:
    """Share of the KV blocks that requests held, step by step; drawn as `step_profile` is.

    Raises:
        ValueError: no arm has a step.
    """
    top = max(1.0, *chain.from_iterable(series.values()), 0.0)
    return _strips(series, ylabel, title, top, percent=True)


def _strips(
    series: Mapping[str, Sequence[float]], ylabel: str, title: str, top: float, *, percent: bool
) -> Drawing:
    if not any(len(values) for values in series.values()):
        raise ValueError("there are no steps to draw")
    colours = arm_colours(series)
    strips = [
        Strip(f"{clean(arm, 40)}: {len(values):,} steps", colours[arm], values)
        for arm, values in series.items()
    ]

    def draw(figure: Any) -> None:
        place = figure.add_gridspec(1, 1)[0]
        draw_strips(figure, place, strips, top=top, percent=percent)
        figure.supylabel(clean(ylabel, 40), fontsize=8)

    style = ".0%" if percent else ",.0f"
    told = [
        f"{arm}: {len(values):,} steps, mean {sum(values) / len(values):{style}}, "
        f"greatest {max(values):{style}}"
        for arm, values in series.items()
        if len(values)
    ]
    svg = draw_svg((_WIDTH, 0.5 + _STRIP_HEIGHT * len(strips)), draw)
    return Drawing(title, _alt(f"{title}, one strip per arm", told), svg)


def _bars_size(names: Sequence[str], series: Mapping[str, object]) -> tuple[float, float]:
    return _WIDTH, 0.9 + len(names) * (_ROW_GAP + _BAR_HEIGHT * max(1, len(series)))


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("there are no results to draw")


def _alt(what: str, told: Sequence[str]) -> str:
    return f"{what}. " + "; ".join(told) + "."
