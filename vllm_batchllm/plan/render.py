# SPDX-License-Identifier: Apache-2.0
"""A plan for people: tables for the terminal and a picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import console as rich_console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vllm_batchllm.plan.analysis import Group, Plan

_NUM_GROUPS_DRAWN = 40
_NOTE = (
    "First come, first served is simulated one request at a time, in file order, without "
    "outputs; an engine that runs many at once has less room for cached prefixes."
)


def print_plan(plan: Plan, console: rich_console.Console) -> None:
    """Print the figures of a plan and its largest groups."""
    parts: list[Any] = [_figures(plan)]
    if plan.groups:
        parts += ["", _groups(plan)]
    if plan.first_come is not None:
        parts += ["", Text(_NOTE, style="dim")]
    console.print(Padding(rich_console.Group(*parts), (1, 1)))


def _figures(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_row("requests", f"{plan.num_requests:,}", "")
    if plan.num_left_out:
        table.add_row("bad lines left out", f"{plan.num_left_out:,}", "", style="yellow")
    table.add_row("exact duplicates", f"{plan.num_duplicates:,}", "")
    table.add_row("groups that share a prefix", f"{plan.num_groups:,}", "")
    sampled = f"estimated: {plan.num_sampled:,} requests were tokenised (--exact: all)"
    note = sampled if plan.is_estimate else ""
    table.add_row("prompt tokens", f"{plan.prompt_tokens:,}", note)
    if plan.max_output_tokens:
        table.add_row("output tokens at most", f"{plan.max_output_tokens:,}", "where lines say so")
    about = "about " if plan.is_estimate else ""
    error = "" if plan.ratio_error is None else f" ± {plan.ratio_error:.1%}"
    table.add_row(
        "possible saving",
        f"{plan.optimal_saved_ratio:.1%}{error}",
        f"{about}{plan.optimal_saved_tokens:,} tokens at block size {plan.block_size:,}",
        style="green",
    )
    if plan.num_unread:
        table.add_row(
            "read nothing",
            f"{plan.num_unread:,}",
            "ask for prompt log-probabilities; say from where on: prompt_logprobs_start",
            style="yellow",
        )
    _add_first_come(table, plan)
    if plan.verdict is not None:
        table.add_row("verdict", "", plan.verdict_reason, style="bold")
    return table


def _add_first_come(table: Table, plan: Plan) -> None:
    name = "first come, first served"
    first_come = plan.first_come
    if first_come is None:
        table.add_row(
            name, "–", "not simulated; give --kv-blocks or --kv-tokens, or --device", style="dim"
        )
        return
    cache = f"{first_come.num_kv_blocks:,} KV blocks"
    table.add_row(
        name,
        f"{first_come.saved_ratio:.1%}",
        f"{first_come.saved_tokens:,} tokens in {cache}",
    )
    if first_come.num_oversized:
        table.add_row(
            "do not fit at all",
            f"{first_come.num_oversized:,}",
            f"need more than {cache} each",
            style="yellow",
        )


def _groups(plan: Plan) -> Table:
    title = "Shared prefixes worth most, by level" if plan.levels else "Groups worth most"
    table = Table(title=title, title_justify="left", title_style="bold")
    numbers = {
        "prefix tokens": [group.prefix_tokens for group in plan.groups],
        "requests": [group.num_members for group in plan.groups],
        "tokens saved": [group.saved_tokens for group in plan.groups],
    }
    for name, values in numbers.items():
        # Rich would shrink figures to dots to make room for the text.
        width = max(len(name), *(len(f"{value:,}") for value in values))
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    table.add_column("where it departs from the others")
    for group in plan.groups:
        table.add_row(
            f"{group.prefix_tokens:,}",
            f"{group.num_members:,}",
            f"{group.saved_tokens:,}",
            Text("  " * group.level + group.preview, no_wrap=True, overflow="ellipsis"),
        )
    return table


def plot_plan(plan: Plan, path: Path) -> None:
    """Draw the savings and the largest groups of a plan into a PNG file.

    Raises:
        OSError: the file cannot be written.
    """
    # Imported here: it takes longer than the rest of a plan for a small file.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_rows = min(len(plan.groups), _NUM_GROUPS_DRAWN)
    height = max(3.2, 1.6 + 0.32 * num_rows)
    figure = Figure(figsize=(11, height), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    savings, groups = figure.subplots(1, 2, width_ratios=(1, 2.2))
    _plot_savings(savings, plan)
    _plot_groups(groups, plan, plan.groups[:num_rows])
    with warnings.catch_warnings():
        # The default font lacks the characters of many scripts; it draws boxes for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.print_png(path)


def _plot_savings(axes: Any, plan: Plan) -> None:
    names, ratios, colours = ["possible"], [plan.optimal_saved_ratio], ["#2a9d6f"]
    if plan.first_come is not None:
        names.append(f"first come,\nfirst served\n{plan.first_come.num_kv_blocks:,} blocks")
        ratios.append(plan.first_come.saved_ratio)
        colours.append("#8a8f98")
    bars = axes.bar(names, [100 * ratio for ratio in ratios], color=colours, width=0.6)
    axes.bar_label(bars, [f"{ratio:.1%}" for ratio in ratios], padding=2)
    axes.set_xlim(-0.75, len(names) - 0.25)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("prompt tokens saved, %")
    axes.set_title(f"{plan.num_requests:,} requests, {plan.prompt_tokens:,} prompt tokens", size=10)
    axes.spines[["top", "right"]].set_visible(False)


def _plot_groups(axes: Any, plan: Plan, groups: Sequence[Group]) -> None:
    axes.set_title("groups worth most", size=10)
    axes.spines[["top", "right"]].set_visible(False)
    if not groups:
        axes.set_axis_off()
        axes.text(0.5, 0.5, no_groups_text(plan), ha="center", transform=axes.transAxes)
        return
    rows = range(len(groups))
    saved = [group.saved_tokens for group in groups]
    bars = axes.barh(rows, saved, color="#3b74b9")
    notes = [f"{group.num_members:,} × {group.prefix_tokens:,}" for group in groups]
    axes.bar_label(bars, notes, padding=3, size=8)
    labels = ["› " * group.level + _shortened(group.preview) for group in groups]
    # Prompts may hold dollar signs, which would otherwise start a formula.
    axes.set_yticks(rows, labels, size=8, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("prompt tokens saved (labels: requests × shared prefix tokens)")
    axes.xaxis.set_major_formatter("{x:,.0f}")


def no_groups_text(plan: Plan) -> str:
    """What a picture says where no group is listed."""
    if not plan.num_groups:
        return "nothing is shared"
    return f"{plan.num_groups:,} groups, none of them listed (--top)"


def _shortened(text: str, width: int = 36) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
