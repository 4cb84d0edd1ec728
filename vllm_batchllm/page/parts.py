# SPDX-License-Identifier: Apache-2.0
"""What a time is made of: one bar per arm, its parts one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_batchllm.page.page import Drawing
from vllm_batchllm.page.palette import PARTS
from vllm_batchllm.page.svg import clean, draw_svg

_WIDTH, _BAR, _MARGIN = 8.2, 0.32, 1.0  # inches


def stacked_parts(
    arms: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    xlabel: str,
    title: str = "Where the time goes",
) -> Drawing:
    """One bar for each arm, the first on top. Parts that are nothing everywhere are left out.

    Args:
        arms: names of the bars.
        parts: by name, one length for each arm.
        xlabel: what is added up, with its unit.

    Raises:
        ValueError: no arms, or a part of another length.
    """
    from matplotlib.patches import Patch

    if not arms:
        raise ValueError("there are no results to draw")
    for name, lengths in parts.items():
        if len(lengths) != len(arms):
            raise ValueError(f"{len(lengths)} lengths of {name!r} for {len(arms)} arms")
    shown = {name: lengths for name, lengths in parts.items() if any(lengths)}
    colours = [PARTS[number % len(PARTS)] for number in range(len(shown))]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        starts = [0.0] * len(arms)
        for (_, lengths), colour in zip(shown.items(), colours, strict=True):
            axes.barh(range(len(arms)), lengths, 0.7, left=starts, color=colour)
            starts = [start + length for start, length in zip(starts, lengths, strict=True)]
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_yticks(range(len(arms)), [clean(arm, 40) for arm in arms])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel(clean(xlabel, 120))
        names = zip(shown, colours, strict=True)
        handles = [Patch(color=colour, label=clean(name, 40)) for name, colour in names]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0),
                    ncols=3, fontsize=8, frameon=False, borderaxespad=0.2)  # fmt: skip

    told = [
        f"{arm}: " + ", ".join(f"{name} {shown[name][place]:,.3g}" for name in shown)
        for place, arm in enumerate(arms)
    ]
    height = _MARGIN + _BAR * len(arms) + 0.2 * -(-len(shown) // 3)
    alt = f"Bars, {xlabel}, by part. " + "; ".join(clean(one, 300) for one in told) + "."
    return Drawing(title, alt, draw_svg((_WIDTH, height), draw))
