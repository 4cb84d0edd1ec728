# SPDX-License-Identifier: Apache-2.0
"""Checks of a step that need the device's answer: off unless ``VLLM_BATCHLLM_CHECK=1``."""

from __future__ import annotations

import os

import torch

CHECK = "VLLM_BATCHLLM_CHECK"
"""Environment variable that switches checks on which cost a synchronisation in each step."""


def checks_are_on() -> bool:
    """Whether steps are checked; not to be switched on where steps are captured as graphs."""
    return os.environ.get(CHECK) == "1"


def check_step(block_table: torch.Tensor, seq_lens: torch.Tensor, block_size: int) -> None:
    """Whether a block table can be that of these lengths.

    Raises:
        ValueError: a row is longer than its table, or has vLLM's null block before its end.
    """
    num_blocks = -(-seq_lens // block_size)
    width = block_table.shape[1]
    for row in torch.nonzero(num_blocks > width).flatten().tolist():
        raise ValueError(
            f"row {row} of this step has {int(seq_lens[row])} tokens and needs {int(num_blocks[row])} blocks of "
            f"{block_size}, but its block table holds {width}"
        )
    places = torch.arange(width, device=block_table.device)
    inside = places[None] < num_blocks[:, None]
    for row, place in torch.nonzero(inside & (block_table <= 0)).tolist():
        raise ValueError(
            f"row {row} of this step has {int(seq_lens[row])} tokens, but entry {place} of its block table is "
            f"{int(block_table[row, place])}, which is no block of a request"
        )
