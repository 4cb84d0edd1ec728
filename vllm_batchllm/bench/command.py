# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm bench`: the command line around `run_suite`.

Standard output gets the result, standard error the progress; nothing that a user can mend
ends in a traceback. Exit codes: 0 all well, 1 a workload failed or outputs differ, 2 wrong use, 130 it was
interrupted (finished workloads are kept).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_batchllm.bench.device import DeviceSizes, sizes_here
from vllm_batchllm.bench.engine import ARMS, EngineSpec, prepare_environment, share_cpu_memory
from vllm_batchllm.bench.engine_options import check_engine_options, read_engine_options
from vllm_batchllm.bench.progress import Shown
from vllm_batchllm.bench.report import Report
from vllm_batchllm.bench.runner import MIN_ROUNDS, check_arms
from vllm_batchllm.bench.show import show
from vllm_batchllm.bench.suite import (
    Plan,
    WorkloadOptions,
    check_model,
    is_good,
    make_plan,
    resolve_model,
    resolve_workloads,
    run_suite,
)
from vllm_batchllm.errors import EXIT_INTERRUPTED, UsageError
from vllm_batchllm.measure.command_line import parse_options, quieten, tell_page
from vllm_batchllm.shared_options import (
    OUT,
    SCALE,
    AsJson,
    BatchLLMOptions,
    BlockSize,
    KvBlocks,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    ModelOrRandom,
    NumRequests,
    OutputTokens,
    ReportFolder,
    Seed,
)
from vllm_batchllm.workloads.catalog import DEFAULT_SCALE, EVALUATIONS, workload_names
from vllm_batchllm.workloads.sources import is_file

EXIT_FAILED, EXIT_USAGE = 1, 2
_NAMES = (
    "Files of prompts, chats or OpenAI batch lines (.jsonl, .jsonl.gz), traces, and workloads: "
    f"{', '.join([*workload_names(), *EVALUATIONS])}; 'suite' (default), 'evals' (prompts that are "
    "scored) or 'all' for several."
)

EngineOptions = Annotated[
    list[str] | None,
    typer.Option(help="Options of vLLM's engine for all arms, KEY=VALUE: kv_cache_dtype=fp8."),
]


def bench(
    workload: Annotated[list[str] | None, typer.Argument(help=_NAMES)] = None,
    model: ModelOrRandom = None,
    scale: Annotated[float, typer.Option(help=SCALE)] = DEFAULT_SCALE,
    num_requests: NumRequests = None,
    seed: Seed = 0,
    output_tokens: OutputTokens = None,
    rounds: Annotated[
        int | None, typer.Option(help="Paired rounds (default: 3, with --quick 1).", min=1)
    ] = None,
    kv_blocks: KvBlocks = None,
    block_size: BlockSize = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    max_num_seqs: MaxNumSeqs = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help=f"What is compared (default: {', '.join(ARMS)}); each has an engine."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Default: float32 on the CPU, where outputs stay comparable; else auto."),
    ] = None,
    order: Annotated[str | None, typer.Option(help="batchllm's order of groups.")] = None,
    option: BatchLLMOptions = None,
    engine_option: EngineOptions = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("results/bench"),
    report: ReportFolder = None,
    as_json: AsJson = False,
    quick: Annotated[bool, typer.Option(help="Allow fewer than 3 rounds: a look.")] = False,
) -> None:
    """Measure stock vLLM, sorted, sorted and tuned, and batchllm, on engines that take turns."""
    num_rounds = rounds or (1 if quick else MIN_ROUNDS)
    quieten()
    finished: list[Report] = []
    try:
        names = resolve_workloads(workload or ["suite"])
        arms = tuple(arm or ARMS)
        check_arms(arms, num_rounds, quick)
        options = parse_options(order, option or [])
        extra = read_engine_options(engine_option or [])
        if model is not None:
            model = check_model(model)
        if kv_blocks is None and any(map(is_file, names)):
            share_cpu_memory()
        on_cpu = prepare_environment()
        here = sizes_here(on_cpu)
        _check_block_size(block_size or here.block_size, on_cpu=on_cpu)
        folder, vocab_size = resolve_model(model)
        spec = EngineSpec(
            model=folder,
            kv_blocks=0,
            max_model_len=0,
            block_size=block_size or here.block_size,
            dtype=dtype or here.dtype,
            seed=seed,
            num_engines=len(arms),
            **_sizes(here, max_num_batched_tokens, max_num_seqs),
            batchllm_options=options,
            extra=extra,
        )
        drawn = WorkloadOptions(scale, num_requests, seed, kv_blocks, model, output_tokens)
        plans = [make_plan(name, drawn, spec, vocab_size) for name in names]
        check_engine_options(plans[0].spec, on_cpu=on_cpu)
        _note(plans, scale)
        result = _run(plans, arms, num_rounds, out, quick, _keep(finished, report, plans))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        what = (
            f"; finished workloads are in {out}" if finished else " before a workload was finished"
        )
        print(f"interrupted{what}", file=sys.stderr)
        tell_page(report if finished else None)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    show(result, out, as_json)
    tell_page(report)
    if not is_good(result):
        raise typer.Exit(EXIT_FAILED)


def _check_block_size(block_size: int, *, on_cpu: bool) -> None:
    if on_cpu and block_size % 32:
        raise UsageError(f"--block-size must be a multiple of 32 on the CPU, not {block_size}")


def _keep(
    finished: list[Report], folder: Path | None, plans: list[Plan]
) -> Callable[[Report], None]:
    """What adds each report that was written to ``finished``, and writes its page into ``folder``."""
    if folder is None:
        return finished.append
    from vllm_batchllm.bench.page import page_writer

    write = page_writer(folder, plans)

    def keep(report: Report) -> None:
        finished.append(report)
        write(report)

    return keep


def _note(plans: list[Plan], scale: float) -> None:
    """Tell on standard error what is not as the options may seem to say."""
    fixed = [plan.batch.name for plan in plans if plan.batch.scale != scale and not plan.is_file]
    if fixed:
        print(f"note: {', '.join(fixed)} run at scale 1 by definition", file=sys.stderr)
    for plan in plans:
        if plan.is_file:
            kv = f"{plan.spec.kv_blocks:,} blocks" if plan.spec.kv_blocks else "as vLLM finds room"
            print(f"note: {plan.batch.name}: {plan.batch.description}; KV: {kv}", file=sys.stderr)


def _sizes(
    here: DeviceSizes, max_num_batched_tokens: int | None, max_num_seqs: int | None
) -> dict[str, Any]:
    """Of an `EngineSpec`: the bounds of a step, and which of them the user has set."""
    given = {"max_num_batched_tokens": max_num_batched_tokens, "max_num_seqs": max_num_seqs}
    sizes = {name: value or getattr(here, name) for name, value in given.items()}
    return {**sizes, "set_sizes": tuple(name for name, value in given.items() if value)}


def _run(
    plans: list[Plan],
    arms: tuple[str, ...],
    rounds: int,
    out: Path,
    quick: bool,
    on_report: Callable[[Report], None],
) -> Report:
    with Shown() as shown:
        return run_suite(
            plans,
            rounds,
            out,
            arms=arms,
            quick=quick,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            on_progress=shown.on_progress,
            on_failure=lambda name, error: shown.say(f"error: {name}: {error}"),
            on_report=on_report,
        )
