# SPDX-License-Identifier: Apache-2.0
"""A job in figures: for the terminal when it ends, for `status`, and as one HTML page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from vllm_batchllm.measure.environment import describe_environment
from vllm_batchllm.page.page import Page, Section, write_page
from vllm_batchllm.page.page import Table as PageTable

_MINUTE, _HOUR = 60, 3600


def duration(seconds: float | None) -> str:
    """Seconds as people read them."""
    if seconds is None:
        return "unknown"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    hours, rest = divmod(int(seconds), _HOUR)
    minutes, left = divmod(rest, _MINUTE)
    return f"{hours}:{minutes:02}:{left:02} h" if hours else f"{minutes}:{left:02} min"


def rows(state: Mapping[str, Any]) -> dict[str, str]:
    """A job's state as names and values."""
    lines, tokens = state["lines"], state["tokens"]
    shown = {"input": state["input"], "output": state["output"], "state": state["state"]}
    if state["message"]:
        shown["note"] = state["message"]
    if lines:
        done = lines["completed"] + lines["failed"]
        shown["lines"] = f"{done:,} of {lines['total']:,}"
        if lines["resumed"]:
            shown["lines"] += f" ({lines['resumed']:,} from earlier runs)"
        shown["errors"] = f"{lines['failed']:,}"
    for kind, number in sorted(state["errors"].items()):
        shown[f"  {kind}"] = f"{number:,}"
    if tokens.get("prompt_tokens"):
        shown["prompt tokens"] = f"{tokens['prompt_tokens']:,.0f}"
        shown["output tokens"] = f"{tokens['output_tokens']:,.0f}"
        shown["prompt tokens saved"] = f"{state['saved_ratio']:.1%}"
        shown["computed tokens a second"] = f"{state['tokens_per_s']:,.0f}"
        shown["preemptions"] = f"{tokens['preemptions']:,.0f}"
    shown["running"] = duration(state["running_s"])
    if state["state"] == "running":
        shown["time left"] = duration(state["time_left_s"])
    if state["restarts"]:
        shown["restarts of the engine"] = str(state["restarts"])
    return shown


def table(state: Mapping[str, Any]) -> Table:
    """The same for a terminal."""
    made = Table(title="batchllm job", show_header=False, title_justify="left")
    made.add_column(justify="left")
    made.add_column(justify="right", overflow="fold")
    for name, value in rows(state).items():
        made.add_row(name, value)
    return made


def write_report(state: Mapping[str, Any], folder: Path) -> Path:
    """The job as `index.html` in ``folder``; returns its path."""
    cells = tuple(rows(state).items())
    lines = state["lines"]
    done = lines.get("completed", 0) + lines.get("failed", 0)
    answered = f"{done:,} of {lines.get('total', 0):,} lines answered"
    failed = f"{lines.get('failed', 0):,} of them with an error"
    page = Page(
        "batchllm job",
        (
            f"{answered}, {failed}, in {duration(state['running_s'])}.",
            f"{state['saved_ratio']:.1%} of the prompt tokens did not have to be computed.",
        ),
        shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        describe_environment(),
        (Section("Figures", table=PageTable(("figure", "value"), cells)),),
    )
    return write_page(page, folder)
