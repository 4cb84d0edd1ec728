# SPDX-License-Identifier: Apache-2.0
"""All lines of an input in the depth-first order of their prefixes, and that order cut into parts: decided on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from vllm_batchllm.input.scan import Input
from vllm_batchllm.input.source import ZSTD_SUFFIXES
from vllm_batchllm.input.text_plan import make_plan, new_bytes_of
from vllm_batchllm.plan.line_costs import BYTES_PER_TOKEN, costs_of
from vllm_batchllm.prefix.prefix_order import Ints
from vllm_batchllm.replicas.cut import Costs, cheapest_cuts, parts_work

_PACKED = (".gz", *ZSTD_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A permutation of an input's lines, in parts, and what it brings.

    order: (num_lines,), indices of lines, each once; those that are no requests come first. edges: (num_parts + 1,), part n is
    ``order[edges[n]:edges[n + 1]]``; the last ones are empty where fewer parts are as good.
    text_bytes: of all prompts. shared_before, shared_after: of it what each line shares with the one before it, in the input
    and in ``order``, bytes. cut_bytes: of ``shared_after`` what is at the head of a part, and is computed again.
    largest: work of the largest part over that of the mean one; 1 without lines.
    """

    order: Ints
    edges: Ints
    text_bytes: int
    shared_before: int
    shared_after: int
    cut_bytes: int
    largest: float

    @property
    def parts(self) -> list[Ints]:
        """Lines of each part."""
        return [self.order[begin:end] for begin, end in pairwise(self.edges.tolist())]


def arrange(source: Input, num_parts: int = 1) -> Arrangement:
    """Arrange every line of ``source``, duplicates and bad ones as well. Raises ValueError below one part."""
    lines = np.arange(len(source), dtype=np.int64)
    plan = make_plan(source, lines, source.is_bad, dedupe=False)
    text_bytes = int(source.text_bytes.sum())
    costs = costs_of(source.text_bytes[plan.order], plan.new_bytes)
    starts = cheapest_cuts(costs, num_parts)
    missing = num_parts + 1 - len(starts)
    return Arrangement(
        plan.order,
        np.concatenate((starts, np.full(missing, len(source), dtype=np.int64))),
        text_bytes,
        text_bytes - int(new_bytes_of(source, lines).sum()),
        text_bytes - plan.num_new_bytes,
        round(float(costs.shared[starts[1:]].sum()) * BYTES_PER_TOKEN),
        _largest(costs, starts, num_parts),
    )


def part_paths(output: Path, num_parts: int | None) -> list[Path]:
    """OUTPUT itself, or for ``name.jsonl`` in N parts ``name-00000-of-0000N.jsonl`` and so on."""
    if num_parts is None:
        return [output]
    packing = output.suffix if output.suffix.lower() in _PACKED else ""
    plain = Path(output.name.removesuffix(packing))
    return [
        output.with_name(f"{plain.stem}-{part:05}-of-{num_parts:05}{plain.suffix}{packing}")
        for part in range(num_parts)
    ]


def _largest(costs: Costs, starts: Ints, num_parts: int) -> float:
    if not len(costs):
        return 1.0
    work = parts_work(costs, starts)
    return float(work.max() * num_parts / work.sum())
