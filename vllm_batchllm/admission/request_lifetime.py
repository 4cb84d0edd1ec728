# SPDX-License-Identifier: Apache-2.0
"""What one request takes from the KV cache over its life."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_batchllm.admission.memory_model import LayerKind, MemoryModel

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BlockGrowth:
    """Blocks of one request in the KV cache groups of one kind.

    first: blocks in its first step, in one group. until_next: steps until it takes another block, and
    then one in every ``size`` steps. most: where it stops to grow; None never. num_groups: alike.
    """

    first: int
    until_next: int = 1
    size: int = 1
    most: int | None = None
    num_groups: int = 1

    @classmethod
    def of(cls, kind: LayerKind, num_tokens: int, num_shared_blocks: int) -> BlockGrowth:
        """Of a request of ``num_tokens`` tokens that brings all but so many of its blocks itself."""
        held = kind.last(num_tokens)
        first, most = held - num_shared_blocks, kind.most_blocks
        if most is not None:
            first = min(first, most)
        until_next = held * kind.block_size - num_tokens - kind.num_ahead + 1
        return cls(first, until_next, kind.block_size, most, kind.num_groups)

    def total(self, steps: int) -> int:
        """Blocks summed over the first ``steps`` steps, in all groups."""
        grows = steps
        if self.most is not None:
            grows = min(steps, self.until_next + (self.most - self.first - 1) * self.size)
            grows = max(grows, 0)
        taken = grows - self.until_next  # one in each ``size`` steps, from the first of these on
        grown = _floor_sum(taken, self.size) if taken > 0 else 0
        total = grows * self.first + grown
        return self.num_groups * (total + (steps - grows) * (self.most or 0))

    def at(self, ages: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Blocks at each of ``ages``, steps since the first one, in all groups."""
        held = self.first + np.maximum((ages - self.until_next) // self.size + 1, 0)
        if self.most is not None:
            held = np.minimum(held, self.most)
        return self.num_groups * held


@dataclass(frozen=True, slots=True)
class RequestLifetime:
    """What one request takes from the KV cache, from admission to end.

    steps: it runs. block_steps: blocks held, summed over these steps; blocks shared with
    requests admitted before it are theirs. growths: its blocks, kind by kind of layers, the turns of
    chunks left out. num_extra: blocks that it holds in each step beside.
    """

    steps: int
    block_steps: float
    growths: tuple[BlockGrowth, ...]
    num_extra: int = 0

    @classmethod
    def of(
        cls, model: MemoryModel, num_tokens: int, num_shared: int, steps: int
    ) -> RequestLifetime:
        """The life of a request that shares its first ``num_shared`` units.

        It holds ``num_tokens`` tokens at first, and one more in each of its ``steps``.
        """
        steps = max(steps, 1)
        growths = tuple(
            BlockGrowth.of(kind, num_tokens, num_shared * (model.unit // kind.block_size))
            for kind in model.kinds
        )
        total = sum(growth.total(steps) for growth in growths) + steps * model.num_extra
        return cls(steps, float(total), growths, model.num_extra)

    @property
    def full_blocks(self) -> int:
        """Blocks held in the last step."""
        return int(self.profile()[-1])

    def profile(self) -> Floats:
        """Blocks held in each step."""
        ages = np.arange(self.steps)
        held = sum((growth.at(ages) for growth in self.growths), np.zeros_like(ages))
        profile: Floats = (held + self.num_extra).astype(float)
        return profile


def _floor_sum(number: int, size: int) -> int:
    """Sum of n // size + 1 over n = 0 .. number - 1."""
    whole, rest = divmod(number, size)
    return size * whole * (whole + 1) // 2 + rest * (whole + 1)
