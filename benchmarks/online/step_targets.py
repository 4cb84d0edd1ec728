# SPDX-License-Identifier: Apache-2.0
"""Steps by a target of time against the best fixed size of steps: throughput, and the time between tokens.

    python benchmarks/online/step_targets.py --out benchmarks/results/online

Simulated, at saturation and at a moderate rate. The fixed size is searched for each target: the largest throughput of stock vLLM
among the `max_num_batched_tokens` and `max_num_seqs` whose 99th percentile between tokens is within it. Writes
`step_targets.json` (every row), `step_targets_fixed.json` (sizes that the search found) and `step_targets.md`. `--keep` goes on
with what an earlier run has finished.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from targets_report import report
from traffic import LONG, Lengths, Served, make_batch, serve

from vllm_batchllm.simulate.arrivals import poisson_times_s
from vllm_batchllm.workloads.batch import Batch

RATIOS = (1.25, 2.0, 4.0, 8.0)
"""Targets over the decode-only step."""
HOPELESS = 0.5
"""One that decodes alone do not hold."""
SMALL_CHUNKS = 512
"""Fixed size of the run whose steps without prompt tokens are the decode-only step."""
SIZES = (16, 16_384)
CLOSE = 1.03
"""The search ends when a size that fits and one that does not are so near to each other."""
MODERATE = 0.7
"""Of the throughput at saturation."""


@dataclass(frozen=True, slots=True)
class Shape:
    """num: requests. rate: arrivals per second at saturation, more than can be served."""

    num: int
    rate: float
    kinds: tuple[tuple[float, Lengths], ...]

    def batch(self, name: str, seed: int) -> Batch:
        """Requests drawn from `seed`, kinds shuffled."""
        random = np.random.default_rng(seed)
        lengths = [
            one for share, kind in self.kinds for one in kind.draw(random, round(share * self.num))
        ]
        random.shuffle(lengths)
        return make_batch(name, [(int(p), int(o)) for p, o in lengths], seed)


SHAPES = {
    "chat": Shape(400, 40.0, ((1.0, Lengths((500, 4000), (100, 300))),)),
    "long": Shape(30, 1.0, ((1.0, LONG),)),
    "mixed": Shape(240, 10.0, ((0.9, Lengths((512, 512), (128, 128))), (0.1, LONG))),
}


@dataclass(slots=True)
class FixedSizes:
    """Stock vLLM with fixed sizes on one batch; what was run once is remembered."""

    batch: Batch
    arrivals_s: list[float]
    found: dict[str, list[int] | None]
    """Size and requests at once that the search found for each ratio, to be filled in."""
    runs: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)

    def run(self, size: int, seqs: int) -> dict[str, Any]:
        """Figures with `max_num_batched_tokens` = size; seqs: requests at once."""
        key = (size, min(seqs, size))
        if key not in self.runs:
            served = serve(
                self.batch, self.arrivals_s, max_num_batched_tokens=size, max_num_seqs=key[1]
            )
            spent_s = [spent_s for _, spent_s in served.steps.steps]
            self.runs[key] = served.figures() | {"size": size, "seqs": key[1], "steps_s": spent_s}
        return self.runs[key]

    def best(self, ratio: float, target_s: float, all_seqs: list[int]) -> dict[str, Any] | None:
        """The fastest that keeps the target of all that were tried; None if none does."""
        key = f"{ratio:g}"
        if key not in self.found:
            best = self._searched(target_s, all_seqs)
            self.found[key] = None if best is None else [best["size"], best["seqs"]]
        sizes = self.found[key]
        return None if sizes is None else self.run(*sizes)

    def _searched(self, target_s: float, all_seqs: list[int]) -> dict[str, Any] | None:
        for seqs in all_seqs:
            self._bisect(target_s, seqs)
        kept = [run for run in self.runs.values() if run["tbt"]["p99_s"] <= target_s]
        return max(kept, key=lambda run: float(run["requests_per_s"]), default=None)

    def _bisect(self, target_s: float, seqs: int) -> None:
        """Bisection of the size, by ratios, from what is known already."""
        low, high = SIZES
        if self.run(high, seqs)["tbt"]["p99_s"] <= target_s:
            return
        for size, of_seqs in sorted(self.runs):
            if of_seqs == min(seqs, size):
                keeps = self.runs[size, of_seqs]["tbt"]["p99_s"] <= target_s
                low, high = (max(low, size), high) if keeps else (low, min(high, size))
        while high / low > CLOSE and high - low > 1:
            middle = round(math.sqrt(low * high))
            keeps = self.run(middle, seqs)["tbt"]["p99_s"] <= target_s
            low, high = (middle, high) if keeps else (low, middle)


def rows_of(name: str, seed: int, found: dict[str, list[int] | None]) -> Iterator[dict[str, Any]]:
    """All rows of one shape and seed. found: by the search of fixed sizes, to be gone on with."""
    shape = SHAPES[name]
    batch = shape.batch(name, seed)
    arrivals_s = poisson_times_s(shape.num, shape.rate, seed)
    fixed = FixedSizes(batch, arrivals_s, found)
    small = serve(batch, arrivals_s, max_num_batched_tokens=SMALL_CHUNKS)
    decode_s = small.steps.decode_only_s()
    num_decode_only = sum(not has_prompts for has_prompts, _ in small.steps.steps)
    print(
        f"{name}, seed {seed}: decode-only step {1e3 * decode_s:.1f} ms ({num_decode_only} steps)"
    )
    peak = small.run.metrics.running_peak
    all_seqs = [1024, *sorted({max(peak * part // 4, 1) for part in (2, 1)}, reverse=True)]
    common = {"shape": name, "seed": seed, "decode_only_s": decode_s}
    for ratio in (HOPELESS, *RATIOS):
        target_s = ratio * decode_s
        options = {"target_tbt_ms": 1e3 * target_s}
        row = common | {"ratio": ratio, "target_s": target_s, "load": "saturated"}
        row["ours"] = _with_over(serve(batch, arrivals_s, options), target_s)
        if ratio == HOPELESS:
            yield row
            continue
        best = fixed.best(ratio, target_s, all_seqs)
        row["fixed"] = None if best is None else _plain(best, target_s)
        yield row
        if best is None:
            continue
        moderate_s = poisson_times_s(shape.num, MODERATE * best["requests_per_s"], seed)
        again = serve(
            batch, moderate_s, max_num_batched_tokens=best["size"], max_num_seqs=best["seqs"]
        )
        yield row | {
            "load": "moderate",
            "ours": _with_over(serve(batch, moderate_s, options), target_s),
            "fixed": _with_over(again, target_s) | {"size": best["size"], "seqs": best["seqs"]},
        }


def _with_over(served: Served, target_s: float) -> dict[str, Any]:
    return served.figures() | {"over_ratio": served.steps.over_ratio(target_s)}


def _plain(best: dict[str, Any], target_s: float) -> dict[str, Any]:
    steps_s = best["steps_s"]
    over_ratio = sum(one_s > target_s for one_s in steps_s) / len(steps_s)
    return {k: v for k, v in best.items() if k != "steps_s"} | {"over_ratio": over_ratio}


def main() -> None:
    """Run what is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, default=1, help="how many draws of each shape")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--keep", action="store_true", help="keep rows of an earlier run")
    arguments = parser.parse_args()
    path = arguments.out / "step_targets.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text()) if arguments.keep and path.exists() else []
    sizes_path = arguments.out / "step_targets_fixed.json"
    sizes = json.loads(sizes_path.read_text()) if arguments.keep and sizes_path.exists() else {}
    done = {(row["shape"], row["seed"]) for row in rows}
    for seed in range(arguments.seeds):
        for name in arguments.shapes:
            if (name, seed) not in done:
                for row in rows_of(name, seed, sizes.setdefault(f"{name}-{seed}", {})):
                    rows.append(row)
                    sizes_path.write_text(json.dumps(sizes, indent=1) + "\n")
                path.write_text(json.dumps(rows, indent=1) + "\n")
    text = report(rows)
    (arguments.out / "step_targets.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
