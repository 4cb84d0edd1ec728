# SPDX-License-Identifier: Apache-2.0
"""What a job would do, before it costs anything: lines, errors, and what sharing prefixes can save."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from vllm_batchllm.jobs.session import JobSession


def show_dry_run(session: JobSession) -> None:
    """Print the plan of what is left to standard output."""
    console = Console()
    console.print(_table(session))
    console.print(
        "Exact, in tokens and blocks: vllm-batchllm plan INPUT --model MODEL. "
        "Hours on a device that is not at hand: vllm-batchllm simulate INPUT --device DEVICE.",
        highlight=False,
    )


def _table(session: JobSession) -> Table:
    source, plan, counts = session.source, session.plan, session.counts
    left = session.books.places < 0
    computed = plan.order[~plan.is_refused[plan.order]]
    text_bytes = int(source.text_bytes[computed].sum())
    shared_ratio = 1 - plan.num_new_bytes / text_bytes if text_bytes else 0.0
    made = Table(title="batchllm job, not run", show_header=False, title_justify="left")
    made.add_column(justify="left")
    made.add_column(justify="right")
    for name, value in {
        "lines": f"{counts.total:,}",
        "answered already": f"{counts.done:,}",
        "to be computed": f"{len(computed):,}",
        "exact duplicates, computed once": f"{int(left.sum()) - len(plan.order):,}",
        "lines that are no request": f"{int((plan.is_refused & left).sum()):,}",
        "prompt text": f"{text_bytes / 1e6:,.1f} MB",
        "of it shared with the line before": f"{shared_ratio:.1%}",
        "prefix groups": f"{_num_groups(session):,}",
    }.items():
        made.add_row(name, value)
    return made


def _num_groups(session: JobSession) -> int:
    """Runs of lines of which each shares text with the one before it."""
    plan = session.plan
    begins = plan.new_bytes >= session.source.text_bytes[plan.order]
    shares = ~begins
    follows = np.zeros(len(begins), dtype=bool)
    follows[:-1] = shares[1:]
    return int((begins & follows).sum())
