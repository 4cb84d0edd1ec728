# SPDX-License-Identifier: Apache-2.0
"""The synthetic workloads by name: seeded, shuffled, scaled.

Every shape is (prefix / suffix / output, degree): `degree` requests share each prefix. Lengths
are those of the definition divided by `scale`; token ids are uniform, so that two prefixes
differ in their first token almost surely. A few workloads are about decoding, where dividing
lengths by the scale would take the effect away: they always run at scale 1, and `bench` gives them a
fixed KV size. Descriptions name none: simulations have that of the device.

The pressure (distinct prefix tokens / KV capacity) is 2 for the two-part shapes, 4 for
`long-16000`, 9 for `industry` and 3 for `tree-3`, whose inner levels are shared widely. Where
nothing or little is shared, the ratio says nothing and the KV size is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vllm_batchllm.errors import UsageError, unknown_name
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.shapes import (
    Draw,
    Requests,
    ScoredRequests,
    correlated_output,
    decode_heavy,
    duplicates,
    industry,
    mixed,
    multiple_choice,
    no_sharing,
    prefix_of_prefix,
    skewed_output,
    tree,
    two_part,
)

DEFAULT_SCALE = 8.0
MOST_REQUESTS = 1_000_000
"""Requests of one batch; a slip of the keyboard is refused before it fills the memory."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A definition: how requests are drawn and what the batch around them looks like."""

    build: Callable[[Draw, int], Requests | ScoredRequests]
    num_requests: int
    description: str
    pressure: float | None = None
    kv_blocks: int | None = None
    scales: bool = True
    lengths_known: bool = True


def _micro(prefix: int, suffix: int, degree: int, num_requests: int) -> Workload:
    return Workload(
        build=lambda draw, n: two_part(draw, n, prefix, suffix, 100, degree),
        num_requests=num_requests,
        description=f"{prefix}/{suffix}/100, degree {degree}",
        pressure=2.0,
    )


_D16, _D4 = 16, 4
WORKLOADS: dict[str, Workload] = {
    "micro-2000-200-d16": _micro(2000, 200, _D16, 1024),
    "micro-2000-200-d4": _micro(2000, 200, _D4, 768),
    "micro-2000-1000-d16": _micro(2000, 1000, _D16, 768),
    "micro-2000-1000-d4": _micro(2000, 1000, _D4, 512),
    "micro-1000-1000-d16": _micro(1000, 1000, _D16, 768),
    "micro-1000-1000-d4": _micro(1000, 1000, _D4, 768),
    "long-16000": Workload(
        build=lambda draw, n: two_part(draw, n, 16000, 200, 100, _D16),
        num_requests=192,
        description="16000/200/100, degree 16",
        pressure=4.0,
    ),
    "industry": Workload(
        build=industry,
        num_requests=1024,
        description="60-token instruction, documents of 1570 ± 600, suffix 30, degree about 3",
        pressure=9.0,
    ),
    "decode-heavy": Workload(
        build=decode_heavy,
        num_requests=512,
        description="512/64/96, degree 8, scale 1",
        kv_blocks=750,
        scales=False,
    ),
    "skewed-output": Workload(
        build=skewed_output,
        num_requests=1024,
        description="512/64, degree 8, 90 % output 16 and 10 % output 400, lengths unknown, scale 1",
        kv_blocks=372,
        scales=False,
        lengths_known=False,
    ),
    "correlated-output": Workload(
        build=correlated_output,
        num_requests=2048,
        description="512/64, degree 8, outputs log-normal between groups (median 37, sigma 1.1), "
        "± 25 % inside, lengths unknown, scale 1",
        kv_blocks=450,
        scales=False,
        lengths_known=False,
    ),
    "tree-3": Workload(
        build=tree,
        num_requests=1024,
        description="three levels (800, 600, 800) under suffixes of 200, uneven degrees",
        pressure=3.0,
    ),
    "duplicates": Workload(
        build=duplicates,
        num_requests=1024,
        description="2000/200/100, degree 4, and 30 % exact duplicates",
        pressure=2.0,
    ),
    "prefix-of-prefix": Workload(
        build=prefix_of_prefix,
        num_requests=1024,
        description="chains of prompts, each a strict prefix of the next, up to 2,200 tokens",
        pressure=2.0,
    ),
    "no-sharing": Workload(
        build=no_sharing,
        num_requests=512,
        description="2200/100, nothing shared (control)",
        kv_blocks=500,
    ),
    "mixed": Workload(
        build=mixed,
        num_requests=640,
        description="half 2000/200/100 of degree 16, half unshared 2200 with output 400",
        kv_blocks=500,
    ),
}


def _choices(shots: int, choices: int) -> Workload:
    return Workload(
        build=lambda draw, n: multiple_choice(draw, n, shots, choices),
        num_requests=250 * choices,
        description=f"multiple choice, {shots} shots, {choices} choices, scored by likelihood",
        kv_blocks=500,
    )


#: Scored by the log-probabilities of their prompts; by name only, not among what suites run by default.
EVALUATIONS: dict[str, Workload] = {
    "multiple-choice-1-shot": _choices(1, 2),
    "multiple-choice-5-shot": _choices(5, 4),
    "multiple-choice-25-shot": _choices(25, 10),
}
#: Names without a degree stand for the stronger sharing.
ALIASES = {
    "micro-2000-200": "micro-2000-200-d16",
    "micro-2000-1000": "micro-2000-1000-d16",
    "micro-1000-1000": "micro-1000-1000-d16",
    "multiple-choice": "multiple-choice-5-shot",
}


def workload_names() -> list[str]:
    """All workloads, in the order of the reports; aliases left out."""
    return list(WORKLOADS)


def resolve_name(name: str) -> str:
    """The full name of a workload.

    Raises:
        UsageError: unknown; the message lists the known names and the closest.
    """
    full = ALIASES.get(name, name)
    if full not in WORKLOADS and full not in EVALUATIONS:
        raise unknown_name("workload", name, [*WORKLOADS, *EVALUATIONS, *ALIASES])
    return full


def make_workload(
    name: str,
    *,
    scale: float = DEFAULT_SCALE,
    num_requests: int | None = None,
    seed: int = 0,
    vocab_size: int = 4096,
) -> Batch:
    """Draw a workload.

    Args:
        name: one of `workload_names()` or an alias without the degree.
        scale: divides all lengths (each stays at least 1 token); workloads that are defined
            at scale 1 ignore it, and their batch says so in `Batch.scale`.
        num_requests: requests in the batch; None for the workload's default.
        seed: same seed, same batch.
        vocab_size: token ids are drawn below this, above the few special ones.

    Raises:
        UsageError: unknown name, or a figure out of range.
    """
    full = resolve_name(name)
    definition = (WORKLOADS | EVALUATIONS)[full]
    count = definition.num_requests if num_requests is None else num_requests
    if not scale > 0:
        raise UsageError(f"scale must be above 0, not {scale:g}")
    if count < 1:
        raise UsageError(f"the number of requests must be at least 1, not {count}")
    if count > MOST_REQUESTS:
        raise UsageError(f"{count:,} requests are too many; at most {MOST_REQUESTS:,}")
    if seed < 0:
        raise UsageError(f"seed must be at least 0, not {seed}")
    used_scale = float(scale) if definition.scales else 1.0
    rng = np.random.default_rng([seed, *full.encode()])
    draw = Draw(rng=rng, scale=used_scale, vocab_size=vocab_size)
    requests = definition.build(draw, count)
    order = rng.permutation(len(requests))
    starts = [each[2] for each in requests if len(each) == 3]
    return Batch(
        name=full,
        prompts=[requests[i][0] for i in order],
        output_lens=[requests[i][1] for i in order],
        lengths_known=definition.lengths_known,
        pressure=definition.pressure,
        kv_blocks=definition.kv_blocks,
        seed=seed,
        scale=used_scale,
        description=definition.description,
        starts=[starts[i] for i in order] if starts else None,
    )
