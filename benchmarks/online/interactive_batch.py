# SPDX-License-Identifier: Apache-2.0
"""Interactive requests beside a batch on one device: time to the first token, and what the batch gets done meanwhile.

    python benchmarks/online/interactive_batch.py --out benchmarks/results/online

Simulated. Interactive requests of 512 / 128 tokens come in bursts of 20, a backlog of batch requests is there from the start and
outlasts them. Writes `interactive_batch.json` (every row) and `interactive_batch.md`. `--keep` goes on with an earlier run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from interactive_report import report
from traffic import Served, make_batch, serve

from vllm_batchllm.simulate.arrivals import burst_times_s

RATES = (10.0, 13.0, 25.0)
BURST = 20
BATCHES = ((2000, 200), (8000, 200))
INTERACTIVE = (512, 128)
WINDOW_S = 60.0
BATCH_TOKENS_PER_S = 22_000
"""More than the device can do: the backlog outlasts the window."""
SIZES = (256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
RATIOS = (0.25, 0.5, 1.0, 2.0)
"""Targets for the first token over the 99th percentile alone."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Interactive requests first in the batch, then the backlog."""

    rate: float
    shape: tuple[int, int]
    seed: int

    @property
    def num_interactive(self) -> int:
        """Of the whole window."""
        return round(self.rate * WINDOW_S)

    @property
    def num_batch(self) -> int:
        """Of the backlog."""
        return round(BATCH_TOKENS_PER_S * WINDOW_S / sum(self.shape))

    def arrivals_s(self) -> list[float]:
        """Of the interactive requests."""
        return burst_times_s(self.num_interactive, self.rate, BURST, self.seed)

    def serve(
        self,
        options: Mapping[str, Any] | None,
        size: int | None = None,
        *,
        by_priority: bool = True,
        parts: str = "both",
    ) -> Served:
        """One arm; parts: "both", "interactive" or "batch" alone."""
        urgent = self.num_interactive if parts != "batch" else 0
        others = self.num_batch if parts != "interactive" else 0
        batch = make_batch(parts, [INTERACTIVE] * urgent + [self.shape] * others, self.seed)
        arrivals_s = self.arrivals_s()[:urgent] + [0.0] * others
        classes = [0] * urgent + [1] * others if by_priority else None
        return serve(
            batch,
            arrivals_s,
            options,
            classes,
            max_num_batched_tokens=size,
            max_num_seqs=None if size is None else min(size, 1024),
        )

    def tokens_by(self, served: Served, until_s: float, first: int) -> int:
        """Tokens of batch requests (those from place `first` on) by then: prompts as their first token comes, and output."""
        times = served.run.times
        order = np.argsort(times.gap_owners, kind="stable")
        owners = times.gap_owners[order]
        ends = np.cumsum(times.gaps_s[order])
        begins = np.searchsorted(owners, np.arange(len(times.first_s)))
        before = np.where(begins > 0, ends[np.maximum(begins, 1) - 1], 0.0)
        at_s = times.first_s[owners] + ends - before[owners]
        num_started = int((times.first_s[first:] <= until_s).sum())
        num_later = int(((at_s <= until_s) & (owners >= first)).sum())
        return num_started * (self.shape[0] + 1) + num_later


def rows_of(mix: Mix) -> Iterator[dict[str, Any]]:
    """All arms of one mix."""
    until_s = mix.arrivals_s()[-1]
    num = mix.num_interactive
    alone = mix.serve(None, by_priority=False, parts="interactive")
    batch = mix.serve(None, by_priority=False, parts="batch")
    batch_rate = mix.tokens_by(batch, until_s, 0) / until_s
    idle_ratio = 1 - alone.run.busy_s / alone.run.metrics.makespan_s
    p99_s = alone.run.latencies.ttft.p99_s
    common = {
        "rate": mix.rate,
        "shape": list(mix.shape),
        "seed": mix.seed,
        "busy_ratio": 1 - idle_ratio,
        "batch_alone_tokens_per_s": batch_rate,
        "ttft_alone_p99_s": p99_s,
    }

    def row(arm: str, served: Served, **more: Any) -> dict[str, Any]:
        found = served.run.by_class.get(0) if len(served.run.by_class) > 1 else None
        firsts_s = (served.run.times.first_s - served.run.times.arrivals_s)[:num]
        p50, p99 = np.percentile(firsts_s, (50, 99)).tolist()
        tokens = mix.tokens_by(served, until_s, num) if arm != "alone" else 0
        gaps = None if found is None or found.tbt is None else found.tbt.p99_s
        return common | {
            "arm": arm,
            "ttft_p50_s": p50,
            "ttft_p99_s": p99,
            "over_alone": p99 / p99_s,
            "tbt_p99_s": gaps,
            "batch_tokens_per_s": tokens / until_s,
            "of_alone": tokens / until_s / batch_rate,
            "of_idle": tokens / until_s / batch_rate / idle_ratio,
            "preemptions": served.run.metrics.preemptions,
            **more,
        }

    yield row("alone", alone)
    yield row("raw", mix.serve(None, by_priority=False))
    yield row("priority", mix.serve(None))
    tried = [row("priority, fixed size", mix.serve(None, size), size=size) for size in SIZES]
    yield min(tried, key=lambda one: float(one["ttft_p99_s"])) | {"tried": tried}
    yield row("ours, no target", mix.serve({}))
    for ratio in RATIOS:
        target_ms = 1e3 * ratio * p99_s
        served = mix.serve({"target_ttft_ms": target_ms})
        counters = served.run.counters
        yield row(
            "ours",
            served,
            target_ratio=ratio,
            target_ms=target_ms,
            num_paused=counters["num_paused_prefills"],
        )


def main() -> None:
    """Run what is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, default=1, help="how many draws of each mix")
    parser.add_argument("--keep", action="store_true", help="keep rows of an earlier run")
    arguments = parser.parse_args()
    path = arguments.out / "interactive_batch.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text()) if arguments.keep and path.exists() else []
    done = {(row["rate"], tuple(row["shape"]), row["seed"]) for row in rows}
    for seed, rate, shape in product(range(arguments.seeds), RATES, BATCHES):
        if (rate, shape, seed) not in done:
            rows += rows_of(Mix(rate, shape, seed))
            path.write_text(json.dumps(rows, indent=1) + "\n")
    text = report(rows)
    (arguments.out / "interactive_batch.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
