# SPDX-License-Identifier: Apache-2.0
"""Rows of tables: what is simulated for each, run on several cores, kept as they are finished."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vllm_batchllm.measure.environment import usable_cores
from vllm_batchllm.simulate.cost_model import PUBLISHED, Constants
from vllm_batchllm.simulate.shared_kv import KVReading
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.catalog import make_workload


@dataclass(frozen=True, slots=True)
class Row:
    """One run. output_scale: multiplies the outputs of the workload. stock_seqs: our scheduler
    gets no more `max_num_seqs` than stock. is_past: an engine as vLLM 0.6.4 was: one step after the
    other, and decodes alone captured as graphs."""

    label: str
    workload: str
    arm: str
    num_requests: int
    device: str = "A100-80GB"
    model: str = "Llama-3.1-8B"
    weight_bits: float = 16
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    prefix_caching: bool = True
    kv_reading: KVReading = "apart"
    output_scale: float = 1.0
    options: tuple[tuple[str, Any], ...] = ()
    stock_seqs: bool = False
    is_past: bool = False
    constants: Constants = PUBLISHED


def run_row(row: Row) -> dict[str, Any]:
    """Simulate one row; plain values, curves left out.

    `work` is what the cost model makes seconds of: those of matrices and attention at an
    efficiency of 1, steps, and requests scheduled.
    """
    from vllm_batchllm.simulate.arms import TUNED, find_arm
    from vllm_batchllm.simulate.graphs import LAUNCH_S, Graphs, capture_sizes
    from vllm_batchllm.simulate.setup import SetupOptions, make_setup
    from vllm_batchllm.simulate.suite import simulate

    batch = _batch(row)
    setup = make_setup(
        batch,
        SetupOptions(
            device=row.device,
            model=row.model,
            weight_bits=row.weight_bits,
            max_num_seqs=row.max_num_seqs,
            max_num_batched_tokens=row.max_num_batched_tokens,
            prefix_caching=row.prefix_caching,
            kv_reading=row.kv_reading,
            constants=row.constants,
        ),
    )
    if row.is_past:
        # Device times are those at the row's efficiency; host times go with them.
        share = PUBLISHED.efficiency / row.constants.efficiency
        graphs = Graphs(capture_sizes(256, 256), LAUNCH_S * share, has_pieces=False)
        costs = replace(setup.costs, graphs=graphs)
        setup = replace(setup, sizes=replace(setup.sizes, is_async=False), costs=costs)
    arm = replace(find_arm(row.arm, dict(row.options)), raises_seqs=not row.stock_seqs)
    result = simulate(batch, [arm], setup)
    run = result.runs[0]
    metrics = asdict(run.metrics)
    for curve in ("step_tokens", "step_kv_blocks"):
        metrics.pop(curve, None)
    return {
        "row": asdict(row),
        "metrics": metrics,
        "parts": asdict(run.parts),
        "bound_s": result.bound_s,
        "kv_blocks": setup.sizes.num_blocks,
        "mean_kv_share": run.mean_kv_share(setup.sizes.num_blocks),
        "wall_s": run.wall_s,
        "choice": f"watermark {run.counters['watermark']:g}" if row.arm == TUNED else "",
        "graph_modes": run.graph_modes,
    }


def _batch(row: Row) -> Batch:
    batch = make_workload(row.workload, scale=1, num_requests=row.num_requests, vocab_size=2**17)
    outputs = [max(1, round(row.output_scale * length)) for length in batch.output_lens]
    return replace(batch, output_lens=outputs)


def run_rows(rows: Sequence[Row], path: Path, *, keep: bool = False) -> list[dict[str, Any]]:
    """Results in the order of `rows`; the file at `path` holds what is finished at any time.

    keep: rows that the file has already are not run again.
    """
    done = _read(path) if keep else {}
    todo = [row for row in rows if _key(asdict(row)) not in done]
    with ProcessPoolExecutor(max_workers=usable_cores(), initializer=_quieten) as pool:
        futures = {pool.submit(run_row, row): row for row in todo}
        with tqdm(total=len(todo), desc=path.stem, unit="row", file=sys.stderr) as bar:
            for future in as_completed(futures):
                result = future.result()
                done[_key(result["row"])] = result
                bar.update()
                _write(path, [done[key] for row in rows if (key := _key(asdict(row))) in done])
    return [done[_key(asdict(row))] for row in rows]


def _quieten() -> None:
    """In a worker, so that whoever imports this keeps the log as it is."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def _key(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {_key(result["row"]): result for result in json.loads(path.read_text())["rows"]}


def _write(path: Path, results: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps({"rows": results}, indent=1) + "\n")
    os.replace(partial, path)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)) + "\n"
