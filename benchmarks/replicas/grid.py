# SPDX-License-Identifier: Apache-2.0
"""Rows of the tables of replicas: what is simulated for each, one after the other, kept as they are finished."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.catalog import make_workload
from vllm_batchllm.workloads.sources import FILE_SUFFIXES, InputOptions, load_batch

VOCAB_SIZE = 256
"""Token ids of workloads: Python keeps one object for each of these, so that 200,000 prompts are arrays of pointers and no more.
Two prefixes may begin alike, but not for a block."""


@dataclass(frozen=True, slots=True)
class Row:
    """One run. source: a workload, or the name of a file of which a path is given apart."""

    source: str
    num_requests: int
    num_replicas: int
    placement: str = "ours"
    arm: str = "batchllm"
    lengths_known: bool = True
    slowest_speed: float = 1.0
    device: str = "A100-80GB"
    model: str = "Llama-3.1-8B"


def batch_of(row: Row, path: Path | None = None) -> Batch:
    """The batch of a row. path: of the file that its source names."""
    if row.source.endswith(FILE_SUFFIXES):
        batch = load_batch(str(path), InputOptions(num_requests=row.num_requests))
    else:
        batch = make_workload(
            row.source, scale=1, num_requests=row.num_requests, vocab_size=VOCAB_SIZE
        )
    return replace(batch, lengths_known=row.lengths_known)


def work_s(row: Row, path: Path | None = None) -> float:
    """Seconds of the work of a row's batch on one replica, by what each request adds to the time of an engine."""
    from vllm_batchllm.simulate.feeds import PlannedFeed
    from vllm_batchllm.simulate.pool import Pool
    from vllm_batchllm.simulate.setup import SetupOptions, make_setup

    batch = batch_of(row, path)
    setup = make_setup(batch, SetupOptions(device=row.device, model=row.model))
    feed = PlannedFeed(batch, setup.costs, Pool(), setup.sizes.block_size)
    return float(feed.costs.work.sum())


def run_row(row: Row, path: Path | None = None) -> dict[str, Any]:
    """Simulate one row; plain values, curves left out."""
    from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
    from vllm_batchllm.simulate.arms import find_arm
    from vllm_batchllm.simulate.pool import Pool
    from vllm_batchllm.simulate.replicas import run_replicas
    from vllm_batchllm.simulate.setup import SetupOptions, make_setup

    batch = batch_of(row, path)
    setup = make_setup(batch, SetupOptions(device=row.device, model=row.model))
    optimum = optimal_saved_tokens(batch.prompts, setup.sizes.block_size)
    pool = Pool(row.num_replicas, row.placement, row.slowest_speed)
    run = min(
        (
            run_replicas(batch, arm, setup.sizes, setup.costs, pool, optimum)
            for arm in find_arm(row.arm).variants()
        ),
        key=lambda run: run.metrics.makespan_s,
    )
    metrics = asdict(run.metrics)
    for curve in ("step_tokens", "step_kv_blocks"):
        metrics.pop(curve)
    assert run.pool is not None
    return {
        "row": asdict(row),
        "metrics": metrics,
        "pool": asdict(run.pool),
        "capacity": pool.capacity,
        "optimal_saved_tokens": optimum,
        "work_s": work_s(row, path),
        "wall_s": run.wall_s,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def run_rows(
    rows: Sequence[Row],
    path: Path,
    source: Path | None = None,
    *,
    keep: bool = False,
    finished: bool = False,
) -> dict[Row, dict[str, Any]]:
    """Results by row; the file at `path` holds what is finished at any time. Each row has a process of its own.

    source: the file that rows may name. keep: rows that the file has already are not run again. finished: no row is run.
    """
    done = _read(path) if keep or finished else {}
    todo = [] if finished else [row for row in rows if row not in done]
    for row in tqdm(todo, desc=path.stem, unit="row", file=sys.stderr):
        with ProcessPoolExecutor(max_workers=1, initializer=_quieten) as worker:
            done[row] = worker.submit(run_row, row, source).result()
        ordered = sorted(done, key=lambda each: rows.index(each) if each in rows else len(rows))
        _write(path, [done[each] for each in ordered])
    return {row: done[row] for row in rows if row in done}


def _quieten() -> None:
    """In a worker, so that whoever imports this keeps the log as it is."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def _read(path: Path) -> dict[Row, dict[str, Any]]:
    if not path.exists():
        return {}
    return {Row(**result["row"]): result for result in json.loads(path.read_text())["rows"]}


def _write(path: Path, results: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps({"rows": results}) + "\n")
    os.replace(partial, path)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)) + "\n"
