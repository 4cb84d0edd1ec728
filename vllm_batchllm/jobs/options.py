# SPDX-License-Identifier: Apache-2.0
"""The command line of a job: ours, and beside it every option of vLLM's engine and of its handlers."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vllm_batchllm.config import BatchLLMConfig
from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.line import LineDefaults
from vllm_batchllm.input.source import Columns
from vllm_batchllm.jobs.identity import identity_of, without
from vllm_batchllm.jobs.paths import JobPaths, job_paths
from vllm_batchllm.jobs.runner import RunLimits
from vllm_batchllm.jobs.session import SessionSettings
from vllm_batchllm.replicas.start import ReplicaOptions, check_number

_USAGE = "vllm-batchllm run INPUT OUTPUT --model MODEL [options]"
_DESCRIPTION = (
    "Answer every line of INPUT, once, and write OUTPUT as answers come. Started again with the same command it "
    "goes on where it was."
)
_EPILOG = (
    "All options of vLLM's engine and of its server's handlers are options of a job as well; --help=all lists "
    "them. Exit codes: 0 every line has an answer, 2 some lines have an error, 75 interrupted (run it again), "
    "1 failed, 64 wrong use."
)
_HELP = ("--help", "-h")


@dataclass(frozen=True, slots=True)
class JobOptions:
    """A command line, read. engine: the options that are vLLM's. columns: of a Parquet file. device: to be simulated.

    replicas: None for one engine, in this process.
    """

    input_name: str
    paths: JobPaths
    columns: Columns
    settings: SessionSettings
    limits: RunLimits
    engine: Namespace
    keep_order: bool
    restart: bool
    dry_run: bool
    report: Path | None
    device: str | None = None
    replicas: ReplicaOptions | None = None


def parse_job(argv: Sequence[str]) -> JobOptions:
    """Read a command line. ``--help`` prints and exits.

    Raises:
        UsageError: it cannot be understood, or asks for what cannot be.
    """
    if any(word in _HELP for word in argv):
        _show_help()
    parser = _make_parser()
    ours = _add_ours(parser)
    args = parser.parse_args(list(argv))
    if args.disable_log_stats:
        raise UsageError(
            "--disable-log-stats cannot be used here: progress and --stall-s read the statistics"
        )
    if args.simulate and not args.dry_run:
        raise UsageError(
            f"--simulate {args.simulate} needs --dry-run: a job that runs is not simulated"
        )
    for name in ("stall_s", "grace_s", "start_s", "max_line_mb"):
        if not getattr(args, name) > 0:
            raise UsageError(
                f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}"
            )
    engine = without(args, ours)
    defaults = LineDefaults(args.max_tokens)
    return JobOptions(
        args.input,
        job_paths(args.input, args.output, args.journal, args.status, args.keep_order),
        Columns(args.prompt_column, args.messages_column, args.id_column),
        SessionSettings(
            identity_of(engine, parser, defaults),
            defaults,
            int(args.max_line_mb * 1e6),
            args.retry_errors,
            _batchllm_options(args.additional_config).dedupe,
        ),
        RunLimits(args.stall_s, args.grace_s, args.max_restarts, args.start_s),
        engine,
        args.keep_order,
        args.restart,
        args.dry_run,
        args.report,
        args.simulate,
        _replicas(args),
    )


def _replicas(args: Namespace) -> ReplicaOptions | None:
    """How many engines, and where. Raises UsageError where that contradicts itself."""
    check_number(args.replicas, f"--replicas {args.replicas}")
    if args.ray_address is not None and args.replicas == 1:
        raise UsageError(f"--ray-address {args.ray_address} needs --replicas 2 or more")
    if args.replicas == 1:
        return None
    if args.data_parallel_size > 1:
        raise UsageError(
            f"--data-parallel-size {args.data_parallel_size} and --replicas {args.replicas} both "
            "mean several engines; give --replicas alone"
        )
    world_size = args.tensor_parallel_size * args.pipeline_parallel_size
    return ReplicaOptions(args.replicas, world_size, args.ray_address)


def _batchllm_options(additional_config: Any) -> BatchLLMConfig:
    try:
        return BatchLLMConfig.parse((additional_config or {}).get("batchllm", {}))
    except (AttributeError, ValueError) as error:
        raise UsageError(f"--additional-config: {error}") from None


def _make_parser() -> ArgumentParser:
    """vLLM's parser of engine and handlers, with our scheduler unless another is named."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.run_batch import BaseFrontendArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class JobParser(FlexibleArgumentParser):
        """Its errors are ours."""

        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{message}; `vllm-batchllm run --help` lists the options")

    parser = JobParser(prog="vllm-batchllm run", description=_DESCRIPTION, usage=_USAGE)
    BaseFrontendArgs.add_cli_args(parser)
    AsyncEngineArgs.add_cli_args(parser)
    parser.set_defaults(scheduler_cls="batchllm")
    made: ArgumentParser = parser
    return made


def _show_help() -> NoReturn:
    """The job's own options; vLLM's are hundreds."""
    parser = ArgumentParser(usage=_USAGE, description=_DESCRIPTION, epilog=_EPILOG)
    _add_ours(parser)
    parser.print_help()
    raise SystemExit(0)


def _add_ours(parser: ArgumentParser) -> list[str]:
    """Add the job's own options; returns their names."""
    known = {action.dest for action in parser._actions}
    group = parser.add_argument_group("job", "How INPUT becomes OUTPUT.")
    _add_files(group)
    _add_running(group)
    _add_replicas(group)
    return [action.dest for action in parser._actions if action.dest not in known]


def _add_files(group: Any) -> None:
    add = group.add_argument
    add(
        "input",
        metavar="INPUT",
        help="JSONL of OpenAI batch lines or plain prompts; .gz, .zst, .parquet; - reads standard input.",
    )
    add(
        "output",
        metavar="OUTPUT",
        help="Where answers go, in the same kind; .gz, .zst, .parquet; - writes standard output at the end.",
    )
    add(
        "--journal",
        type=Path,
        metavar="FILE",
        help="Where answers are kept until OUTPUT is made (default: OUTPUT itself if it is plain JSONL, else OUTPUT.journal.jsonl).",
    )
    add("--keep-order", action="store_true", help="Write OUTPUT in the order of INPUT, at the end.")
    add("--prompt-column", metavar="NAME", help="Column of a Parquet file that holds prompts.")
    add("--messages-column", metavar="NAME", help="Column of a Parquet file that holds chats.")
    add(
        "--id-column",
        metavar="NAME",
        help="Column of a Parquet file that names its rows (default: their numbers).",
    )
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help="Output tokens of plain lines that say nothing (default: the endpoint's own).",
    )
    add("--max-line-mb", type=float, default=32.0, metavar="MB", help="Longer lines are errors.")
    add(
        "--status",
        type=Path,
        metavar="FILE",
        help="Where the state is written every second (default: OUTPUT.status.json).",
    )
    add("--report", type=Path, metavar="DIR", help="Folder for the summary as an HTML page.")


def _add_running(group: Any) -> None:
    add = group.add_argument
    add(
        "--dry-run",
        action="store_true",
        help="Read and plan INPUT, say what can be saved, start nothing.",
    )
    add(
        "--simulate",
        metavar="DEVICE",
        help="With --dry-run: hours on this device as well, as `vllm-batchllm simulate` tells them.",
    )
    add("--restart", action="store_true", help="Forget what was answered, and begin anew.")
    add("--retry-errors", action="store_true", help="Compute lines again whose answer is an error.")
    add(
        "--stall-s",
        type=float,
        default=300.0,
        metavar="S",
        help="An engine without a step for so long is started again.",
    )
    add(
        "--grace-s",
        type=float,
        default=30.0,
        metavar="S",
        help="What runs has so long to end once the job is asked to stop.",
    )
    add(
        "--max-restarts",
        type=_count,
        default=20,
        metavar="N",
        help="Restarts of the engine before the job gives up.",
    )


def _add_replicas(group: Any) -> None:
    add = group.add_argument
    add(
        "--replicas",
        type=int,
        default=1,
        metavar="N",
        help="Engines that share the work, placed by Ray (needs the extra `ray`).",
    )
    add(
        "--ray-address",
        metavar="ADDRESS",
        help="A Ray cluster, HOST:PORT or auto (default: RAY_ADDRESS, or this machine alone).",
    )
    add(
        "--start-s",
        type=float,
        default=1800.0,
        metavar="S",
        help="Each of several engines has so long to load its model.",
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return number
