# SPDX-License-Identifier: Apache-2.0
"""Runs several workloads one after the other and keeps what is finished.

Each workload has its own KV size, so each gets its own pair of engines; they are freed before
the next pair starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_batchllm.bench.engine import ARMS, EngineSpec
from vllm_batchllm.bench.files import file_batch
from vllm_batchllm.bench.pace import OnProgress
from vllm_batchllm.bench.random_model import RandomModelSpec, random_model
from vllm_batchllm.bench.report import Report, write_report
from vllm_batchllm.bench.runner import run_ab
from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.tokenizer import TokenizerError, check_place
from vllm_batchllm.measure.environment import describe_environment
from vllm_batchllm.messages import clip
from vllm_batchllm.workloads.batch import Batch, kv_blocks_for
from vllm_batchllm.workloads.catalog import (
    DEFAULT_SCALE,
    EVALUATIONS,
    make_workload,
    resolve_name,
    workload_names,
)
from vllm_batchllm.workloads.sources import InputOptions, check_source, is_file

#: The workloads that the project's promises are stated on.
SUITE = (
    "micro-2000-200-d16",
    "micro-2000-200-d4",
    "industry",
    "tree-3",
    "duplicates",
    "prefix-of-prefix",
    "no-sharing",
)


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """How workloads are drawn and files read; None leaves the workload's own default.

    tokenizer: for files with text. output_tokens: of each request of a file.
    """

    scale: float = DEFAULT_SCALE
    num_requests: int | None = None
    seed: int = 0
    kv_blocks: int | None = None
    tokenizer: str | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One workload, drawn or read from a file, with the engine it runs on."""

    batch: Batch
    spec: EngineSpec
    is_file: bool = False


def resolve_workloads(names: Sequence[str]) -> list[str]:
    """Files, and full workload names, `suite`, `evals` and `all` expanded, each once.

    Raises:
        UsageError: an unknown name, or no such file.
    """
    groups = {"suite": list(SUITE), "evals": list(EVALUATIONS), "all": workload_names()}
    expanded: list[str] = []
    for name in names:
        if name in groups:
            expanded += groups[name]
        elif is_file(name):
            check_source(name)
            expanded.append(name)
        else:
            expanded.append(resolve_name(name))
    return list(dict.fromkeys(expanded))


def resolve_model(model: str | None) -> tuple[str, int]:
    """The model to run and its vocabulary size; None generates the random model.

    Raises:
        UsageError: the folder has no readable `config.json`, or the name cannot be resolved.
    """
    if model is None:
        spec = RandomModelSpec()
        return str(random_model(spec=spec)), spec.vocab_size
    path = check_model(model)
    from transformers import AutoConfig

    try:
        return path, int(AutoConfig.from_pretrained(path).get_text_config().vocab_size)
    except Exception as error:  # transformers raises whatever it likes here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if os.path.isdir(path):
            raise UsageError(
                f"cannot read the configuration of model {clip(model)}: {reason}"
            ) from error
        raise UsageError(
            f"{model} is no folder here, and no configuration of that name could be fetched from "
            f"the model hub ({reason}); check the spelling and the network, or name a local folder"
        ) from error


def check_model(model: str) -> str:
    """Raise UsageError at once where no model can be; else its path, or its name on the hub."""
    try:
        path = check_place(model)
    except TokenizerError as error:
        raise UsageError(str(error)) from None
    # os.path, not Path: that raises for names which no file can have.
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        raise UsageError(f"{model} is not a model folder: it holds no config.json")
    return path


def make_plan(name: str, options: WorkloadOptions, engine: EngineSpec, vocab_size: int) -> Plan:
    """Draw a workload, or read a file, and fit the engine specification to it.

    Without `kv_blocks`, a file has the KV that vLLM finds room for. `engine` gives what does not depend on the workload; its KV size and lengths are replaced.

    Raises:
        UsageError: unknown name, figures out of range, or a KV size that cannot hold the
            largest request.
    """
    if is_file(name):
        batch = _read(name, options, vocab_size)
        kv_blocks = options.kv_blocks or 0
    else:
        batch = make_workload(
            name,
            scale=options.scale,
            num_requests=options.num_requests,
            seed=options.seed,
            vocab_size=vocab_size,
        )
        kv_blocks = options.kv_blocks or kv_blocks_for(batch, engine.block_size)
    needed = -(-batch.max_request_tokens // engine.block_size) + 1
    if 0 < kv_blocks < needed:
        raise UsageError(
            f"{kv_blocks} KV blocks cannot hold the largest request of {batch.name!r} "
            f"({batch.max_request_tokens} tokens): give at least {needed}"
        )
    spec = replace(
        engine,
        kv_blocks=kv_blocks,
        max_model_len=batch.max_request_tokens,
        lengths_known=batch.lengths_known,
    )
    return Plan(batch, spec, is_file(name))


def _read(path: str, options: WorkloadOptions, vocab_size: int) -> Batch:
    inputs = InputOptions(
        scale=options.scale,
        seed=options.seed,
        tokenizer=options.tokenizer,
        tokenizer_option="--model",
        output_tokens=options.output_tokens,
    )
    return file_batch(path, inputs, vocab_size, options.num_requests)


def run_suite(
    plans: Sequence[Plan],
    rounds: int,
    out: Path,
    *,
    quick: bool,
    command: str,
    arms: Sequence[str] = ARMS,
    on_progress: OnProgress | None = None,
    on_failure: Callable[[str, UsageError], None] | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> Report:
    """Run each plan and write the report after each; a workload that fails is noted.

    `on_report` gets each report that was written, the last one included.

    Raises:
        UsageError: the report cannot be written.
    """
    report = Report(results=(), environment=describe_environment(), command=command)
    for plan in plans:
        name = plan.batch.name
        try:
            result = run_ab(
                plan.spec,
                plan.batch,
                arms=arms,
                rounds=rounds,
                quick=quick,
                on_progress=on_progress,
            )
        except UsageError as error:
            report = replace(report, failures=(*report.failures, (name, str(error))))
            if on_failure:
                on_failure(name, error)
        else:
            report = replace(report, results=(*report.results, result))
        write_report(report, out)
        if on_report:
            on_report(report)
    return report


def is_good(report: Report) -> bool:
    """Whether every workload ran and every output matched."""
    matches = [match for result in report.results for match in result.matches]
    return not report.failures and not any(match.unresolved for match in matches)
