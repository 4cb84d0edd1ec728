# SPDX-License-Identifier: Apache-2.0
"""What happened step by step: one strip per arm under each other, so that none hides another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_POINTS: Final = 1000
"""Most values that are drawn of one strip."""
_HEADROOM = 1.35  # of the greatest value: above it stands the label


@dataclass(frozen=True, slots=True)
class Strip:
    """One value per step, what is written into the corner, and a colour."""

    label: str
    colour: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Profile:
    """Values over bins of steps; `maxima` is None where every bin is one step.

    edges: first step of each bin, and the end of the last one.
    """

    edges: NDArray[np.int64]
    means: NDArray[np.float64]
    maxima: NDArray[np.float64] | None = None


def thinned(values: Sequence[float], max_points: int = MAX_POINTS) -> Profile:
    """The values as they are, or mean and greatest of bins if there are more than `max_points`.

    Bins are of equal size but for one step, and both curves together have at most `max_points`.

    Raises:
        ValueError: there are no values, or `max_points` is below 2.
    """
    if max_points < 2:
        raise ValueError(f"max_points must be at least 2, got {max_points}")
    given = np.asarray(values, dtype=np.float64)
    if not given.size:
        raise ValueError("there are no steps to draw")
    if given.size <= max_points:
        return Profile(np.arange(given.size + 1), given)
    num_bins = max_points // 2
    edges = np.arange(num_bins + 1) * given.size // num_bins
    means = np.add.reduceat(given, edges[:-1]) / np.diff(edges)
    return Profile(edges, means, np.maximum.reduceat(given, edges[:-1]))


def draw_strips(
    figure: Any, place: Any, strips: Sequence[Strip], *, top: float, percent: bool = False
) -> list[Any]:
    """Draw the strips with common axes into a place of a grid, and return their axes.

    Where steps are thinned out, the mean of each bin is drawn in full colour and the greatest
    value pale behind it.

    Args:
        top: the greatest value that the axes must hold.
        percent: write values as per cent; 1 is 100 %.
    """
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    num_steps = max(len(strip.values) for strip in strips)
    grid = place.subgridspec(len(strips), 1, hspace=0.0)
    drawn = []
    for index, strip in enumerate(strips):
        axes = figure.add_subplot(grid[index])
        if len(strip.values):
            _fill(axes, thinned(strip.values), strip.colour)
        axes.set_xlim(0, max(1, num_steps))
        axes.set_ylim(0, top * _HEADROOM or 1)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(
            PercentFormatter(1, decimals=0) if percent else StrMethodFormatter("{x:,.0f}")
        )
        axes.locator_params(axis="y", nbins=3)
        axes.tick_params(labelsize=7, labelbottom=index == len(strips) - 1)
        axes.text(0.995, 0.97, strip.label, transform=axes.transAxes, ha="right", va="top",
                  fontsize=7)  # fmt: skip
        drawn.append(axes)
    drawn[-1].set_xlabel("step", fontsize=8)
    return drawn


def _fill(axes: Any, profile: Profile, colour: str) -> None:
    if profile.maxima is not None:
        axes.stairs(profile.maxima, profile.edges, fill=True, color=colour, alpha=0.35, lw=0)
    axes.stairs(profile.means, profile.edges, fill=True, color=colour, lw=0)
