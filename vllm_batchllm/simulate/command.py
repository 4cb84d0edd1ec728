# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm simulate`: the command line around `simulate`.

Standard output gets the result, standard error the progress. Exit codes: 0 all well, 2 wrong use, 130 it was
interrupted (finished rows are kept).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_batchllm.errors import EXIT_INTERRUPTED, UsageError
from vllm_batchllm.input.source import Columns
from vllm_batchllm.input.trace import TRACE_BLOCK_SIZE
from vllm_batchllm.measure.command_line import parse_options, quieten, tell_page
from vllm_batchllm.measure.progress import Progress
from vllm_batchllm.shared_options import (
    OUT,
    SCALE,
    AsJson,
    BatchLLMOptions,
    BlockSize,
    KvBlocks,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    MessagesColumn,
    NumRequests,
    OutputTokens,
    PromptColumn,
    ReportFolder,
    Seed,
)
from vllm_batchllm.simulate.arms import DEFAULT_ARMS, ONLINE_ARMS
from vllm_batchllm.simulate.arrivals import Arrivals, arrivals_of
from vllm_batchllm.simulate.options import (
    ARMS_HELP,
    DEVICES_HELP,
    MODELS_HELP,
    SOURCES,
    ArrivalsKind,
    BurstSize,
    Lockstep,
    Lookahead,
    Placement,
    Price,
    Rate,
    Replicas,
    SharedAttention,
    SlowestSpeed,
    Tokenizer,
    WeightBits,
)
from vllm_batchllm.workloads.sources import InputOptions, check_source, load_batch

if TYPE_CHECKING:  # these import vLLM, which `plan` does without
    from vllm_batchllm.simulate.arms import Arm
    from vllm_batchllm.simulate.book import Book
    from vllm_batchllm.simulate.pool import Pool
    from vllm_batchllm.simulate.setup import Setup, SetupOptions
    from vllm_batchllm.simulate.suite import SimulationReport
    from vllm_batchllm.workloads.batch import Batch

EXIT_USAGE = 2


def simulate(
    source: Annotated[list[str] | None, typer.Argument(help=SOURCES)] = None,
    device: Annotated[str, typer.Option(help=DEVICES_HELP)] = "A100-80GB",
    model: Annotated[str, typer.Option(help=MODELS_HELP)] = "Llama-3.1-8B",
    policy: Annotated[list[str] | None, typer.Option("--policy", "-p", help=ARMS_HELP)] = None,
    tensor_parallel: Annotated[int, typer.Option(help="Devices for one model.")] = 1,
    weight_bits: WeightBits = None,
    num_requests: NumRequests = None,
    scale: Annotated[float, typer.Option(help=SCALE)] = 1.0,
    seed: Seed = 0,
    tokenizer: Tokenizer = None,
    trace_block_size: Annotated[
        int, typer.Option(help="Prompt tokens for each id of a trace (Qwen's: 16).", min=1)
    ] = TRACE_BLOCK_SIZE,
    output_tokens: OutputTokens = None,
    prompt_column: PromptColumn = None,
    messages_column: MessagesColumn = None,
    kv_blocks: KvBlocks = None,
    block_size: BlockSize = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    lookahead: Lookahead = None,
    memory_utilization: Annotated[float, typer.Option(help="As in vLLM.")] = 0.9,
    prefix_caching: Annotated[bool, typer.Option(help="With prefix caching.")] = True,
    shared_attention: SharedAttention = False,
    replicas: Replicas = 1,
    placement: Placement = None,
    slowest_speed: SlowestSpeed = None,
    lockstep: Lockstep = False,
    arrivals: ArrivalsKind = None,
    rate: Rate = None,
    burst_size: BurstSize = None,
    option: BatchLLMOptions = None,
    price: Price = None,
    out: Annotated[Path | None, typer.Option(help=OUT)] = None,
    report: ReportFolder = None,
    as_json: AsJson = False,
) -> None:
    """Simulate batches on devices that are not at hand, with the real schedulers."""
    quieten()
    book: Book | None = None
    try:
        from vllm_batchllm.simulate.pool import pools_of
        from vllm_batchllm.simulate.setup import SetupOptions

        traffic = arrivals_of(arrivals, rate, burst_size, seed)
        _refuse_with_arrivals(traffic, replicas, report)
        arms = _arms(policy, option, DEFAULT_ARMS if traffic is None else ONLINE_ARMS)
        pools = pools_of(replicas, placement, slowest_speed, lockstep)
        columns = Columns(prompt_column, messages_column)
        inputs = InputOptions(
            scale, num_requests, seed, tokenizer, output_tokens, trace_block_size, columns
        )
        engine = SetupOptions(
            device=device,
            model=model,
            tensor_parallel=tensor_parallel,
            weight_bits=weight_bits,
            memory_utilization=memory_utilization,
            block_size=block_size,
            kv_blocks=kv_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_waiting=lookahead,
            prefix_caching=prefix_caching,
        )
        plans = _plans(source or ["micro-2000-200-d16"], inputs, engine)
        _check_online(plans, arms, traffic)
        book = _book(out, price, _page_writer(report, plans))
        _run(plans, arms, pools, traffic, shared_attention, book)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        _tell_interrupted(book, out)
        if book is not None and book.report.results:
            _show(book.report, as_json)
        tell_page(report)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _show(book.report, as_json)
    tell_page(report)


def _book(
    folder: Path | None, price: float | None, on_report: Callable[[SimulationReport], None] | None
) -> Book:
    from vllm_batchllm.simulate.book import Book  # and vLLM with it, once all is well

    return Book(folder, price, on_report)


def _tell_interrupted(book: Book | None, out: Path | None) -> None:
    if book is None or not book.report.results:
        print("interrupted before a row was finished", file=sys.stderr)
    else:
        where = f"in {out}" if out else "shown"
        print(f"interrupted; finished rows are {where}", file=sys.stderr)


def _plans(
    sources: Sequence[str], inputs: InputOptions, engine: SetupOptions
) -> list[tuple[Batch, Setup]]:
    """All batches with their engines, read and checked."""
    from vllm_batchllm.simulate.setup import check_names, make_setup
    from vllm_batchllm.simulate.sizes import check_fits

    check_names(engine)
    for source in sources:
        check_source(source)
    batches = [load_batch(source, inputs) for source in dict.fromkeys(sources)]
    plans = [(batch, make_setup(batch, engine)) for batch in batches]
    for batch, setup in plans:
        check_fits(batch, setup.sizes)
    return plans


def _arms(
    policy: Sequence[str] | None, option: Sequence[str] | None, default: Sequence[str]
) -> list[Arm]:
    """What is compared, each once. Raises UsageError."""
    from vllm_batchllm.simulate.arms import find_arm

    options = dict(parse_options(None, option or []))
    return [find_arm(name, options) for name in dict.fromkeys(policy or default)]


def _refuse_with_arrivals(traffic: Arrivals | None, replicas: int, report: Path | None) -> None:
    """Raise UsageError for what is not simulated, or not shown, over time."""
    if traffic is None:
        return
    if replicas != 1:
        raise UsageError(
            f"--arrivals is for one engine, and --replicas {replicas} shares a batch that is all there; leave one out"
        )
    if report is not None:
        raise UsageError(
            f"--report {report} shows batches, no latencies; with --arrivals take --out or --json"
        )


def _check_online(
    plans: Sequence[tuple[Batch, Setup]], arms: Sequence[Arm], traffic: Arrivals | None
) -> None:
    """Raise UsageError before the first run for what would be refused at a later one."""
    if traffic is None:
        return
    from vllm_batchllm.simulate.online import check_online
    from vllm_batchllm.simulate.online_suite import arrival_times

    for batch, setup in plans:
        arrival_times(batch, traffic)
        for arm in arms:
            check_online(arm, setup.sizes)


def _page_writer(
    folder: Path | None, plans: Sequence[tuple[Batch, Setup]]
) -> Callable[[SimulationReport], None] | None:
    if folder is None:
        return None
    from vllm_batchllm.simulate.page import page_writer

    return page_writer(folder, plans)


def _run(
    plans: Sequence[tuple[Batch, Setup]],
    arms: Sequence[Arm],
    pools: Sequence[Pool],
    traffic: Arrivals | None,
    compare_attention: bool,
    book: Book,
) -> None:
    from vllm_batchllm.simulate.online_suite import simulate_online
    from vllm_batchllm.simulate.setup import ATTENTION_BOUNDS
    from vllm_batchllm.simulate.suite import simulate as run_simulation

    num_runs = sum(len(arm.variants()) for arm in arms)
    num_runs += len(ATTENTION_BOUNDS) if compare_attention else 0
    total = num_runs * len(pools) * sum(batch.num_requests for batch, _ in plans)
    with Progress(total, "requests") as shown:
        for batch, setup in plans:

            def on_arm(name: str, workload: str = batch.name) -> None:
                shown.describe(f"{workload}: {name}")

            told: dict[str, Any] = {
                "compare_attention": compare_attention,
                "on_arm": on_arm,
                "on_progress": shown.advance,
                "on_result": book.put,
            }
            if traffic is None:
                run_simulation(batch, arms, setup, pools, **told)
            else:
                simulate_online(batch, traffic, arms, setup, **told)


def _show(report: SimulationReport, as_json: bool) -> None:
    from rich.console import Console

    from vllm_batchllm.simulate.show import table
    from vllm_batchllm.simulate.suite import report_to_dict

    if as_json:
        print(json.dumps(report_to_dict(report), indent=1))
        return
    for result in report.results:
        Console().print(table(report, result))
