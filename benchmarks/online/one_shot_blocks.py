# SPDX-License-Identifier: Apache-2.0
"""The table of `one_shot_engine.py`: means over blocks, and intervals of differences within blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 4000
Numbers = np.ndarray[Any, Any]


def report(
    blocks: Sequence[Any], batch_ms: Mapping[int, float], more_w: float, command: str
) -> str:
    """As Markdown."""
    took = ", ".join(f"{ms:.2f} ms for {size}" for size, ms in batch_ms.items())
    num = len({block.number for block in blocks})
    lines = [
        "# One-shot requests on a real engine\n",
        f"`{command}`\n",
        (
            f"A batch takes {took}. Means over {num} blocks in turns. Cost: mean response time, ms, + w2 · mean power above idle, "
            f"modelled as {more_w:g} W times the share of time in steps. Difference: ours - the best other arm, in ms, with "
            "the 95 % interval by bootstrap over blocks, within which both had the same arrivals.\n"
        ),
        "| load | w2 | greedy | fixed 8 | fixed 32 | best time-out | ours | ours - best | 95 % | W, ms | power, W | batch |",
        "| ---: |" + " ---: |" * 11,
    ]
    for load in sorted({block.load for block in blocks}):
        chosen = [block for block in blocks if block.load == load]
        weights = [block.weight for block in chosen if block.weight is not None]
        for weight in dict.fromkeys(weights):
            lines.append(f"| {load} | {weight:g} | {' | '.join(_row(chosen, weight))} |")
    return "\n".join(lines) + "\n"


def _row(blocks: Sequence[Any], weight: float) -> list[str]:
    costs: dict[str, Numbers] = {}
    for arm in dict.fromkeys(block.arm for block in blocks):
        own = [b for b in blocks if b.arm == arm and b.weight in (None, weight)]
        costs[arm] = np.array([b.response_ms + weight * b.power_w for b in own])
    means = {arm: float(found.mean()) for arm, found in costs.items()}
    waits = [arm for arm in means if arm.startswith("time-out")]
    wait = min(waits, key=lambda arm: means[arm])
    best = min((arm for arm in means if arm != "ours"), key=lambda arm: means[arm])
    low, high = interval(costs["ours"] - costs[best])
    ours = [block for block in blocks if block.weight == weight]
    return [
        *(f"{means[arm]:.2f}" for arm in ("greedy", "fixed 8", "fixed 32")),
        f"{means[wait]:.2f} ({wait.removeprefix('time-out ')})",
        f"{means['ours']:.2f}",
        f"{means['ours'] - means[best]:+.2f} ({best})",
        f"{low:+.2f} to {high:+.2f}",
        *(f"{np.mean([getattr(b, name) for b in ours]):.1f}" for name in ("response_ms", "power_w", "batch_size")),
    ]  # fmt: skip


def interval(differences: Numbers) -> tuple[float, float]:
    """Of their mean, 95 %, by bootstrap."""
    draw = np.random.default_rng(0)
    places = draw.integers(0, len(differences), (DRAWS, len(differences)))
    low, high = np.percentile(differences[places].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
