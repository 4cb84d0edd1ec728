# SPDX-License-Identifier: Apache-2.0
"""What lines cost, in tokens, as far as that can be told from their text: what batches are cut by."""

from __future__ import annotations

import numpy as np

from vllm_batchllm.prefix.prefix_order import Ints
from vllm_batchllm.replicas.cut import Costs, Floats

BYTES_PER_TOKEN = 4.0
FIRST_OUTPUT_TOKENS = 256.0
"""Of a line, before any answer has shown more."""


def costs_of(text_bytes: Ints, new_bytes: Ints) -> Costs:
    """Costs of lines in the order of a plan, before any is answered.

    Args:
        text_bytes: of each prompt. new_bytes: of it, what it does not share with the line before.
    """
    shared = (text_bytes - new_bytes) / BYTES_PER_TOKEN
    shared[:1] = 0
    return Costs(work_of(new_bytes, FIRST_OUTPUT_TOKENS), np.maximum(shared, 0.0))


def work_of(new_bytes: Ints, output_tokens: float) -> Floats:
    """Tokens to be computed for each line, where every output is so long."""
    work: Floats = new_bytes / BYTES_PER_TOKEN + output_tokens
    return work
