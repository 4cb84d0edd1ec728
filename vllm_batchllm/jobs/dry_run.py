# SPDX-License-Identifier: Apache-2.0
"""What a job would do, before it costs anything: lines, errors, and what sharing prefixes can save."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from vllm_batchllm.input.line import LineDefaults
from vllm_batchllm.jobs.session import JobSession
from vllm_batchllm.plan.command import plan
from vllm_batchllm.plan.load import EXACT_LINES
from vllm_batchllm.simulate.command import simulate


def show_dry_run(
    session: JobSession, engine: Namespace, defaults: LineDefaults, device: str | None
) -> None:
    """Print the plan of what is left to standard output: on text, and where the job is small exactly, in tokens.

    Args:
        engine: vLLM's options. device: on which the job is simulated as well; None for none.
    """
    console = Console()
    console.print(_table(session))
    path, model = session.source.path, str(engine.model)
    try:
        if len(session.source) <= EXACT_LINES:
            plan(str(path), model, block_size=engine.block_size or 16, skip_bad=True)
        else:
            told = f"vllm-batchllm plan {path} --model {model}"
            console.print(f"In tokens and blocks, once tokenised: {told}", highlight=False)
        if device is not None:
            simulate(
                [str(path)],
                device=device,
                model=model,
                tokenizer=model,
                output_tokens=defaults.max_tokens,
            )
    except typer.Exit:
        console.print("(the rest cannot be told; the reason stands above)", highlight=False)


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
