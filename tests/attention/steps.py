# SPDX-License-Identifier: Apache-2.0
"""Steps as an engine makes them: block tables, lengths, places of the new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Group = tuple[int, Any]
"""Prefix tokens, and either the number of rows behind them or groups within."""


@dataclass(frozen=True, eq=False)
class Step:
    """block_table (rows, width), with stale entries behind each row's blocks; lengths include the new tokens."""

    block_table: np.ndarray
    seq_lens: np.ndarray
    query_lens: np.ndarray
    num_blocks: int

    @property
    def query_start(self) -> np.ndarray:
        return np.concatenate([[0], self.query_lens.cumsum()])

    @property
    def num_tokens(self) -> int:
        return int(self.query_lens.sum())

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Block table, lengths, places of the new tokens: int32."""
        arrays = (self.block_table, self.seq_lens, self.query_start)
        return tuple(torch.from_numpy(a.astype(np.int32)) for a in arrays)  # type: ignore[return-value]


class StepMaker:
    """Rows of blocks at random places."""

    def __init__(self, seed: int, block_size: int = 16) -> None:
        self.rng = np.random.default_rng(seed)
        self.block_size = block_size
        self.num_blocks = 1  # vLLM's null block is 0
        self.rows: list[tuple[list[int], int]] = []

    def _take(self, num_blocks: int) -> list[int]:
        ids = list(range(self.num_blocks, self.num_blocks + num_blocks))
        self.num_blocks += num_blocks
        self.rng.shuffle(ids)
        return ids

    def add(self, group: Group, head: Sequence[int] = (), own: tuple[int, int] = (1, 90)) -> None:
        """Rows of a group, each with its own tokens behind, of which it has ``own[0]`` to ``own[1] - 1``."""
        prefix_tokens, behind = group
        blocks = [*head, *self._take(prefix_tokens // self.block_size)]
        if not isinstance(behind, int):
            for each in behind:
                self.add(each, blocks, own)
            return
        for _ in range(behind):
            num_own = int(self.rng.integers(*own))
            taken = self._take(-(-num_own // self.block_size))
            self.rows.append((blocks + taken, len(blocks) * self.block_size + num_own))

    def step(
        self, query_lens: Sequence[int] = (1,), num_padded: int = 0, shuffled: bool = False
    ) -> Step:
        """The rows as a step; ``query_lens`` are repeated over them."""
        rows = list(self.rows)
        if shuffled:
            self.rng.shuffle(rows)  # type: ignore[arg-type]
        width = max(len(blocks) for blocks, _ in rows) + 2
        table = self.rng.integers(0, self.num_blocks, size=(len(rows) + num_padded, width))
        for n, (blocks, _) in enumerate(rows):
            table[n, : len(blocks)] = blocks
        table[len(rows) :] = 0
        padding = [0] * num_padded
        seq_lens = np.array([length for _, length in rows] + padding)
        wanted = [query_lens[n % len(query_lens)] for n in range(len(rows))]
        lens = np.minimum(np.array(wanted + padding), seq_lens)
        return Step(table, seq_lens, lens, self.num_blocks)


def make_step(groups: Sequence[Group], seed: int = 0, block_size: int = 16, **options: Any) -> Step:
    """A step of these groups."""
    maker = StepMaker(seed, block_size)
    own = options.pop("own", (1, 90))
    for group in groups:
        maker.add(group, own=own)
    return maker.step(**options)
