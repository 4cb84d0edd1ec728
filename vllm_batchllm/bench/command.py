# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm bench`: the command line around `run_suite`.

Standard output gets the result, standard error the progress; nothing that a user can mend
ends in a traceback. Exit codes: 0 all well, 1 a workload failed or outputs differ (or it was
interrupted), 2 wrong use.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from vllm_batchllm.bench.engine import ARMS, EngineSpec, prepare_environment
from vllm_batchllm.bench.page import page_writer
from vllm_batchllm.bench.report import Report, report_to_dict
from vllm_batchllm.bench.runner import MIN_ROUNDS, Progress
from vllm_batchllm.bench.suite import (
    Plan,
    WorkloadOptions,
    is_good,
    make_plan,
    resolve_model,
    resolve_workloads,
    run_suite,
)
from vllm_batchllm.bench.tables import arms_of, match_text, ratio_text
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.command_line import parse_options, quieten, tell_page
from vllm_batchllm.measure.metrics import ABResult
from vllm_batchllm.workloads.catalog import DEFAULT_SCALE, EVALUATIONS, workload_names

EXIT_FAILED, EXIT_USAGE = 1, 2
_NAMES = (
    f"Workloads: {', '.join([*workload_names(), *EVALUATIONS])}; 'suite' (default), 'evals' (prompts that are "
    "scored) or 'all' for several."
)


def _check_block_size(block_size: int, *, on_cpu: bool) -> None:
    if on_cpu and block_size % 32:
        raise UsageError(f"--block-size must be a multiple of 32 on the CPU, not {block_size}")


def bench(
    workload: Annotated[list[str] | None, typer.Argument(help=_NAMES)] = None,
    model: Annotated[
        str | None, typer.Option(help="Model folder or name (default: a generated random model).")
    ] = None,
    scale: Annotated[float, typer.Option(help="Divides all lengths.")] = DEFAULT_SCALE,
    num_requests: Annotated[
        int | None, typer.Option(help="Requests (default: the workload's).", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts and engine.", min=0)] = 0,
    rounds: Annotated[
        int | None, typer.Option(help="Paired rounds (default: 3, with --quick 1).", min=1)
    ] = None,
    kv_blocks: Annotated[
        int | None, typer.Option(help="KV blocks (default: from the workload's pressure).", min=1)
    ] = None,
    block_size: Annotated[int, typer.Option(help="Tokens per KV block.", min=1)] = 32,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Tokens per step (default: 2048).", min=1)
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Requests running at once (default: 256).", min=1)
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help=f"What is compared (default: {', '.join(ARMS)}); each has an engine."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 keeps outputs comparable.")] = "float32",
    order: Annotated[str | None, typer.Option(help="batchllm's order of groups.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Further batchllm options, KEY=VALUE.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("results/bench"),
    report: Annotated[
        Path | None, typer.Option(help="Folder for the report as one HTML page as well.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, not as a table.")
    ] = False,
    quick: Annotated[bool, typer.Option(help="Allow fewer than 3 rounds: a look.")] = False,
) -> None:
    """Measure stock vLLM, sorted, sorted and tuned, and batchllm, on engines that take turns."""
    num_rounds = rounds or (1 if quick else MIN_ROUNDS)
    quieten()
    try:
        names = resolve_workloads(workload or ["suite"])
        if num_rounds < MIN_ROUNDS and not quick:
            raise UsageError(f"--rounds must be at least {MIN_ROUNDS}, or add --quick")
        arms = tuple(arm or ARMS)
        options = parse_options(order, option or [])
        drawn = WorkloadOptions(scale, num_requests, seed, kv_blocks)
        _check_block_size(block_size, on_cpu=prepare_environment())
        folder, vocab_size = resolve_model(model)
        spec = EngineSpec(
            model=folder,
            kv_blocks=0,
            max_model_len=0,
            block_size=block_size,
            dtype=dtype,
            seed=seed,
            num_engines=len(arms),
            **_sizes(max_num_batched_tokens, max_num_seqs),
            batchllm_options=options,
        )
        plans = [make_plan(name, drawn, spec, vocab_size) for name in names]
        _note_fixed_scale(plans, scale)
        on_report = page_writer(report, plans) if report else None
        result = _run(plans, arms, num_rounds, out, quick, on_report)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        print(f"interrupted; finished workloads are in {out}", file=sys.stderr)
        tell_page(report)
        raise typer.Exit(EXIT_FAILED) from None
    _show(result, out, as_json)
    tell_page(report)
    if not is_good(result):
        raise typer.Exit(EXIT_FAILED)


def _note_fixed_scale(plans: list[Plan], scale: float) -> None:
    fixed = [plan.batch.name for plan in plans if plan.batch.scale != scale]
    if fixed:
        print(f"note: {', '.join(fixed)} run at scale 1 by definition", file=sys.stderr)


def _sizes(max_num_batched_tokens: int | None, max_num_seqs: int | None) -> dict[str, Any]:
    """Of an `EngineSpec`: what the user has set, and that it was set."""
    given = {"max_num_batched_tokens": max_num_batched_tokens, "max_num_seqs": max_num_seqs}
    sizes = {name: value for name, value in given.items() if value is not None}
    return {**sizes, "set_sizes": tuple(sizes)}


def _run(
    plans: list[Plan],
    arms: tuple[str, ...],
    rounds: int,
    out: Path,
    quick: bool,
    on_report: Callable[[Report], None] | None,
) -> Report:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    total = len(plans) * rounds * len(arms)
    with tqdm(total=total, unit="run", file=sys.stderr, dynamic_ncols=True) as bar:

        def on_progress(event: Progress) -> None:
            bar.set_description_str(f"{event.workload}: {event.stage}")
            if event.run is None:
                return
            bar.update()
            run = event.run
            tqdm.write(
                f"{event.workload}  round {run.round + 1}  {run.arm:<10}  {run.makespan_s:7.2f} s  "
                f"reuse {run.reuse_efficiency:.4f}  preemptions {run.preemptions}",
                file=sys.stderr,
            )

        def on_failure(name: str, error: UsageError) -> None:
            tqdm.write(f"error: {name}: {error}", file=sys.stderr)

        return run_suite(
            plans,
            rounds,
            out,
            arms=arms,
            quick=quick,
            command=command,
            on_progress=on_progress,
            on_failure=on_failure,
            on_report=on_report,
        )


def _show(report: Report, out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report_to_dict(report), indent=1))
    elif report.results:
        Console().print(_table(report.results))
    for result in report.results:
        for match in result.matches:
            if match.unresolved:
                print(
                    f"{result.workload['name']}: {len(match.unresolved)} outputs of arm "
                    f"{match.arm!r} differ from stock; see bench.md",
                    file=sys.stderr,
                )
    print(f"report: {out}/bench.json, bench.md, bench.png", file=sys.stderr)


def _table(results: Sequence[ABResult]) -> Table:
    """A row per workload, narrow enough for a terminal; `bench.md` has every figure."""
    arms = arms_of(results)
    ratios = list(
        dict.fromkeys(f"{r.slower} / {r.faster}" for item in results for r in item.ratios())
    )
    names = ", ".join(arms)
    table = Table("workload", caption="medians over the rounds; ratios of makespans (min–max)")
    for title in (f"seconds: {names}", *ratios, f"reuse: {names}", "output match"):
        table.add_column(title, justify="right")
    for result in results:
        medians = [result.medians(arm) for arm in result.arms]
        table.add_row(
            str(result.workload["name"]),
            "  ".join(f"{figures['makespan_s']:.2f}" for figures in medians),
            *(ratio_text(ratio) for ratio in result.ratios()),
            "  ".join(f"{figures['reuse_efficiency']:.3f}" for figures in medians),
            match_text(result),
        )
    return table
