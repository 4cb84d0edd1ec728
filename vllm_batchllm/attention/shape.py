# SPDX-License-Identifier: Apache-2.0
"""What the kernels are made for: sizes of one attention layer and of a step, and the tiles of a device."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_SIZES = (64, 80, 96, 112, 128, 256)
"""Head sizes that are tested and compiled; those that are no power of two are padded inside the kernels."""

FLOAT_BYTES = 4


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below ``number``."""
    return 1 << max(0, (number - 1).bit_length())


@dataclass(frozen=True)
class AttentionShape:
    """Sizes that a plan is made for; all are per rank.

    block_size: tokens in a block as the kernels see it. max_query_len: rows of more new tokens take no part (1, or with
    speculative decoding 1 + the number of drafts). max_rows: rows of the largest step. max_blocks: width of block tables.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    block_size: int
    max_rows: int
    max_blocks: int
    max_query_len: int = 1

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} KV heads equally"
            )

    @property
    def group(self) -> int:
        """Query heads of one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def padded_head(self) -> int:
        """Head size as the tiles have it."""
        return next_power_of_two(self.head_size)

    @property
    def padded_rows(self) -> int:
        """Places of the table of nodes: one for each boundary between rows."""
        return next_power_of_two(self.max_rows + 1)

    def partial_bytes(self, num_rows: int) -> int:
        """Memory of so many partial results of all heads, with their log-sum-exp."""
        return num_rows * self.num_heads * (self.head_size + 1) * FLOAT_BYTES


@dataclass(frozen=True)
class Tile:
    """One configuration of the prefix kernel: queries and tokens of a tile, and how it is launched."""

    m: int
    n: int
    num_warps: int
    num_stages: int
    num_programs: int


@dataclass(frozen=True)
class Tiles:
    """Tiles of a device. Nodes of fewer than ``narrow_below`` packed queries get the narrow one.

    max_splits: pieces that a node is cut into at most, so that few nodes keep a device busy. min_split: tokens of a piece.
    """

    wide: Tile
    narrow: Tile | None = None
    narrow_below: int = 0
    max_splits: int = 8
    min_split: int = 256

    def __post_init__(self) -> None:
        if (self.narrow is None) != (self.narrow_below == 0):
            raise ValueError(
                f"narrow_below = {self.narrow_below} and the narrow tile {self.narrow} go together"
            )

    @property
    def narrow_m(self) -> int:
        return self.wide.m if self.narrow is None else self.narrow.m

    @property
    def unit(self) -> int:
        """Tokens that a cut is a multiple of."""
        return self.wide.n if self.narrow is None else max(self.wide.n, self.narrow.n)

    @property
    def num_programs(self) -> int:
        """Programs that a plan finds work for."""
        return self.wide.num_programs
