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
from vllm_batchllm.bench.random_model import RandomModelSpec, random_model
from vllm_batchllm.bench.report import Report, write_report
from vllm_batchllm.bench.runner import OnProgress, run_ab
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.environment import describe_environment
from vllm_batchllm.workloads.batch import Batch, kv_blocks_for
from vllm_batchllm.workloads.catalog import (
    DEFAULT_SCALE,
    EVALUATIONS,
    make_workload,
    resolve_name,
    workload_names,
)

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
    """How workloads are drawn; None leaves the workload's own default."""

    scale: float = DEFAULT_SCALE
    num_requests: int | None = None
    seed: int = 0
    kv_blocks: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One workload, drawn, with the engine it runs on."""

    batch: Batch
    spec: EngineSpec


def resolve_workloads(names: Sequence[str]) -> list[str]:
    """Full workload names, `suite`, `evals` and `all` expanded, each once.

    Raises:
        UsageError: an unknown name.
    """
    groups = {"suite": list(SUITE), "evals": list(EVALUATIONS), "all": workload_names()}
    expanded = [full for name in names for full in groups.get(name) or [resolve_name(name)]]
    return list(dict.fromkeys(expanded))


def resolve_model(model: str | None) -> tuple[str, int]:
    """The model to run and its vocabulary size; None generates the random model.

    Raises:
        UsageError: the folder has no readable `config.json`, or the name cannot be resolved.
    """
    if model is None:
        spec = RandomModelSpec()
        return str(random_model(spec=spec)), spec.vocab_size
    # os.path, not Path: that raises for names which no file can have.
    if os.path.exists(model) and not os.path.isfile(os.path.join(model, "config.json")):
        raise UsageError(f"{model} is not a model folder: it holds no config.json")
    from transformers import AutoConfig

    try:
        return model, int(AutoConfig.from_pretrained(model).get_text_config().vocab_size)
    except Exception as error:  # transformers raises whatever it likes here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"cannot read the configuration of model {model!r}: {reason}") from error


def make_plan(name: str, options: WorkloadOptions, engine: EngineSpec, vocab_size: int) -> Plan:
    """Draw a workload and fit the engine specification to it.

    `engine` gives what does not depend on the workload; its KV size and lengths are replaced.

    Raises:
        UsageError: unknown name, figures out of range, or a KV size that cannot hold the
            largest request.
    """
    batch = make_workload(
        name,
        scale=options.scale,
        num_requests=options.num_requests,
        seed=options.seed,
        vocab_size=vocab_size,
    )
    kv_blocks = options.kv_blocks or kv_blocks_for(batch, engine.block_size)
    needed = -(-batch.max_request_tokens // engine.block_size) + 1
    if kv_blocks < needed:
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
    return Plan(batch, spec)


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
