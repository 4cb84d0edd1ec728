# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm simulate`: the command line around `simulate`.

Standard output gets the result, standard error the progress. Exit codes: 0 all well, 1 interrupted (rows are kept), 2 wrong use.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from tqdm import tqdm

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.source import Columns
from vllm_batchllm.input.trace import TRACE_BLOCK_SIZE
from vllm_batchllm.measure.command_line import parse_options, quieten, tell_page
from vllm_batchllm.measure.environment import describe_environment
from vllm_batchllm.simulate.arms import DEFAULT_ARMS, ONLINE_ARMS
from vllm_batchllm.simulate.arrivals import Arrivals, arrivals_of
from vllm_batchllm.simulate.options import (
    ARMS_HELP,
    DEVICES_HELP,
    MODELS_HELP,
    SOURCES,
    ArrivalsKind,
    BurstSize,
    KvBlocks,
    Lookahead,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    MessagesColumn,
    NumRequests,
    Options,
    OutputTokens,
    Placement,
    Price,
    PromptColumn,
    Rate,
    Replicas,
    ReportFolder,
    SharedAttention,
    SlowestSpeed,
    Tokenizer,
    WeightBits,
)
from vllm_batchllm.simulate.placement import OURS_PLACED
from vllm_batchllm.workloads.sources import InputOptions, load_batch

if TYPE_CHECKING:  # these import vLLM, which `plan` does without
    from vllm_batchllm.simulate.arms import Arm
    from vllm_batchllm.simulate.pool import Pool
    from vllm_batchllm.simulate.setup import Setup, SetupOptions
    from vllm_batchllm.simulate.suite import Simulation, SimulationReport
    from vllm_batchllm.workloads.batch import Batch

EXIT_FAILED, EXIT_USAGE = 1, 2


def simulate(
    source: Annotated[list[str] | None, typer.Argument(help=SOURCES)] = None,
    device: Annotated[str, typer.Option(help=DEVICES_HELP)] = "A100-80GB",
    model: Annotated[str, typer.Option(help=MODELS_HELP)] = "Llama-3.1-8B",
    policy: Annotated[list[str] | None, typer.Option("--policy", "-p", help=ARMS_HELP)] = None,
    tensor_parallel: Annotated[int, typer.Option(help="Devices for one model.")] = 1,
    weight_bits: WeightBits = None,
    num_requests: NumRequests = None,
    scale: Annotated[float, typer.Option(help="Divides all lengths of workloads, traces.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the workload.", min=0)] = 0,
    tokenizer: Tokenizer = None,
    trace_block_size: Annotated[
        int, typer.Option(help="Prompt tokens for each id of a trace (Qwen's: 16).", min=1)
    ] = TRACE_BLOCK_SIZE,
    output_tokens: OutputTokens = None,
    prompt_column: PromptColumn = None,
    messages_column: MessagesColumn = None,
    kv_blocks: KvBlocks = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens per KV block.")] = None,
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    lookahead: Lookahead = None,
    memory_utilization: Annotated[float, typer.Option(help="As in vLLM.")] = 0.9,
    prefix_caching: Annotated[bool, typer.Option(help="With prefix caching.")] = True,
    shared_attention: SharedAttention = False,
    replicas: Replicas = 1,
    placement: Placement = None,
    slowest_speed: SlowestSpeed = None,
    arrivals: ArrivalsKind = None,
    rate: Rate = None,
    burst_size: BurstSize = None,
    option: Options = None,
    price: Price = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the record, simulate.json.")] = None,
    report: ReportFolder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record, no table.")] = False,
) -> None:
    """Simulate batches on devices that are not at hand, with the real schedulers."""
    quieten()
    book: _Book | None = None
    try:
        from vllm_batchllm.simulate.arms import find_arm
        from vllm_batchllm.simulate.setup import SetupOptions

        traffic = arrivals_of(arrivals, rate, burst_size, seed)
        if traffic is not None:
            _refuse_with_arrivals(replicas, report)
        options = dict(parse_options(None, option or []))
        default = DEFAULT_ARMS if traffic is None else ONLINE_ARMS
        arms = [find_arm(name, options) for name in dict.fromkeys(policy or default)]
        pools = _pools(replicas, placement, slowest_speed)
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
        if traffic is not None:
            _check_online(plans, arms, traffic)
        book = _Book(out, price, _page_writer(report, plans))
        _run(plans, arms, pools, traffic, shared_attention, book)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        where = f"; finished rows are in {out}" if out else ""
        print(f"interrupted{where}", file=sys.stderr)
        if book is not None:
            _show(book.report, as_json)
        tell_page(report)
        raise typer.Exit(EXIT_FAILED) from None
    _show(book.report, as_json)
    tell_page(report)


class _Book:
    """The record, and the page if one is wanted, written anew after every finished row."""

    def __init__(
        self,
        folder: Path | None,
        price: float | None,
        on_report: Callable[[SimulationReport], None] | None = None,
    ) -> None:
        from vllm_batchllm.simulate.suite import SimulationReport

        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.report = SimulationReport((), describe_environment(), command, price)
        self._folder, self._on_report = folder, on_report
        if folder is not None:
            self._write()

    def put(self, result: Simulation) -> None:
        """Keep a result; it replaces the one before if it has that one's rows and more."""
        done = self.report.results
        if done and done[-1].runs == result.runs[:-1] and done[-1].workload == result.workload:
            done = done[:-1]
        self.report = dataclasses.replace(self.report, results=(*done, result))
        if self._folder is not None:
            self._write()
        if self._on_report is not None:
            self._on_report(self.report)

    def _write(self) -> None:
        from vllm_batchllm.simulate.suite import write_record

        assert self._folder is not None
        try:
            write_record(self.report, self._folder)
        except OSError as error:
            raise UsageError(
                f"cannot write the record into {self._folder}: {error.strerror or error}"
            ) from None


def _pools(
    num_replicas: int, placements: Sequence[str] | None, slowest_speed: float | None
) -> list[Pool]:
    """One for each placement. Raises UsageError."""
    from vllm_batchllm.simulate.pool import Pool

    if num_replicas == 1:
        for name, value in (("--placement", placements), ("--slowest-speed", slowest_speed)):
            if value is not None:
                shown = ", ".join(value) if isinstance(value, list) else value
                raise UsageError(f"{name} {shown} is for several replicas; give --replicas, too")
        return [Pool()]
    speed = 1.0 if slowest_speed is None else slowest_speed
    names = dict.fromkeys(placements or [OURS_PLACED])
    return [Pool(num_replicas, name, speed) for name in names]


def _plans(
    sources: Sequence[str], inputs: InputOptions, engine: SetupOptions
) -> list[tuple[Batch, Setup]]:
    """All batches with their engines, read and checked."""
    from vllm_batchllm.simulate.setup import make_setup
    from vllm_batchllm.simulate.sizes import check_fits

    batches = [load_batch(source, inputs) for source in dict.fromkeys(sources)]
    plans = [(batch, make_setup(batch, engine)) for batch in batches]
    for batch, setup in plans:
        check_fits(batch, setup.sizes)
    return plans


def _refuse_with_arrivals(replicas: int, report: Path | None) -> None:
    """Raise UsageError for what is not simulated, or not shown, over time."""
    if replicas != 1:
        raise UsageError(
            f"--arrivals is for one engine, and --replicas {replicas} shares a batch that is all there; leave one out"
        )
    if report is not None:
        raise UsageError(
            f"--report {report} shows batches, no latencies; with --arrivals take --out or --json"
        )


def _check_online(
    plans: Sequence[tuple[Batch, Setup]], arms: Sequence[Arm], traffic: Arrivals
) -> None:
    """Raise UsageError before the first run for what would be refused at a later one."""
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
    book: _Book,
) -> None:
    from vllm_batchllm.simulate.online_suite import simulate_online
    from vllm_batchllm.simulate.setup import ATTENTION_BOUNDS
    from vllm_batchllm.simulate.suite import simulate as run_simulation

    num_arms = len(arms) + (len(ATTENTION_BOUNDS) if compare_attention else 0)
    total = num_arms * len(pools) * sum(batch.num_requests for batch, _ in plans)
    with tqdm(total=total, unit=" requests", file=sys.stderr, dynamic_ncols=True) as bar:
        for batch, setup in plans:

            def on_arm(name: str, workload: str = batch.name) -> None:
                bar.set_description_str(f"{workload}: {name}")

            told: dict[str, Any] = {
                "compare_attention": compare_attention,
                "on_arm": on_arm,
                "on_progress": bar.update,
                "on_result": book.put,
            }
            if traffic is None:
                run_simulation(batch, arms, setup, pools, **told)
            else:
                simulate_online(batch, traffic, arms, setup, **told)


def _show(report: SimulationReport, as_json: bool) -> None:
    from vllm_batchllm.simulate.show import table
    from vllm_batchllm.simulate.suite import report_to_dict

    if as_json:
        print(json.dumps(report_to_dict(report), indent=1))
        return
    for result in report.results:
        Console().print(table(report, result))
