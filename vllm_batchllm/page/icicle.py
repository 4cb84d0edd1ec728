# SPDX-License-Identifier: Apache-2.0
"""Shared prefixes as an icicle: the wider a box, the more requests; the deeper, the more tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_batchllm.page.page import Drawing
from vllm_batchllm.page.palette import LEVELS
from vllm_batchllm.page.svg import PAPER, clean, draw_svg

_WIDTH, _HEIGHT = 8.2, 3.4  # inches
_CHARS_PER_INCH, _LINES_PER_INCH = 18.0, 7.0  # of text of 7 points
_TEXT_COLOUR = "#14181d"


@dataclass(frozen=True, slots=True)
class GroupBox:
    """Requests that share a run of prompt tokens.

    Attributes:
        label: what the run says, or a name.
        num_tokens: length of the run: what it adds to the prefix of the box that encloses it.
        num_requests: requests that share it.
        children: groups within, each of a part of its requests, none of which is in two.
    """

    label: str
    num_tokens: int
    num_requests: int
    children: tuple[GroupBox, ...] = ()


@dataclass(frozen=True, slots=True)
class _Placed:
    """A box and where it stands: x in requests, depth in tokens."""

    box: GroupBox
    x: int
    depth: int
    level: int


def forest_icicle(
    groups: Sequence[GroupBox], title: str = "Prefixes that requests share"
) -> Drawing:
    """The groups side by side, depth in tokens downwards; a box is as wide as its requests.

    Where a box holds more requests than the boxes below it, the rest of its width stays empty
    below: those requests share no more, or their groups are too small to be listed.

    Raises:
        ValueError: there are no groups.
    """
    if not groups:
        raise ValueError("there are no groups to draw")
    placed = list(_placed(groups))
    num_requests = sum(group.num_requests for group in groups)
    deepest = max(item.depth + item.box.num_tokens for item in placed)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.set_xlim(0, num_requests)
        axes.set_ylim(deepest, 0)
        for number, item in enumerate(placed):
            _draw_box(axes, item, f"box-{number}", num_requests, deepest)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="both", integer=True)
        axes.tick_params(labelsize=7)
        axes.set_xlabel(
            f"requests in these {len(groups):,} groups (in the boxes: requests × tokens)",
            fontsize=8,
        )
        axes.set_ylabel("depth, prompt tokens", fontsize=8)

    titles = {f"box-{number}": _told(item) for number, item in enumerate(placed)}
    alt = f"{title}. The widest: " + "; ".join(
        f"{clean(group.label, 80)}: {group.num_requests:,} requests share "
        f"{group.num_tokens:,} tokens"
        for group in groups
    )
    return Drawing(title, alt, draw_svg((_WIDTH, _HEIGHT), draw, titles))


def _placed(groups: Sequence[GroupBox]) -> Iterator[_Placed]:
    """Every box with its place, depth first. Iterative: prefixes may nest at any depth."""
    stack = _row(groups, 0, 0, 0)
    while stack:
        item = stack.pop()
        yield item
        depth = item.depth + item.box.num_tokens
        stack.extend(_row(item.box.children, item.x, depth, item.level + 1))


def _row(groups: Sequence[GroupBox], x: int, depth: int, level: int) -> list[_Placed]:
    row = []
    for group in groups:
        row.append(_Placed(group, x, depth, level))
        x += group.num_requests
    return row[::-1]


def _draw_box(axes: Any, item: _Placed, gid: str, num_requests: int, deepest: int) -> None:
    from matplotlib.patches import Rectangle

    box = item.box
    axes.add_patch(
        Rectangle(
            (item.x, item.depth), box.num_requests, box.num_tokens,
            facecolor=LEVELS[item.level % len(LEVELS)], edgecolor=PAPER, lw=0.8, gid=gid,
        )
    )  # fmt: skip
    chars = int(box.num_requests / num_requests * (_WIDTH - 0.8) * _CHARS_PER_INCH)
    num_lines = int(box.num_tokens / deepest * (_HEIGHT - 0.6) * _LINES_PER_INCH)
    lines = [f"{box.num_requests:,} × {box.num_tokens:,}"]
    if len(lines[0]) > chars or num_lines < 1:
        return
    if box.label and num_lines > 1 and chars >= 12:
        lines.append(clean(box.label, chars))
    axes.text(
        item.x + box.num_requests / 2, item.depth + box.num_tokens / 2, "\n".join(lines),
        ha="center", va="center", fontsize=7, color=_TEXT_COLOUR,
    )  # fmt: skip


def _told(item: _Placed) -> str:
    box = item.box
    return (
        f"{box.num_requests:,} requests share tokens {item.depth:,} to "
        f"{item.depth + box.num_tokens:,}: {clean(box.label, 200)}"
    )


def prefixes(groups: Sequence[GroupBox]) -> list[Drawing]:
    """The picture of the groups, if there are any."""
    if not groups:
        return []
    return [forest_icicle(groups, "Prefixes that requests share, the widest groups")]
