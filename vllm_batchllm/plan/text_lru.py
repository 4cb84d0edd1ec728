# SPDX-License-Identifier: Apache-2.0
"""What `lru.py` simulates, on pieces of text instead of blocks: for batches too large to be tokenised."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from vllm_batchllm.input.prompt_text import END_OF_HASH
from vllm_batchllm.prefix.prefix_order import HashTable, Ints, shared_depths

_SIZES = np.diff(np.frombuffer(END_OF_HASH, np.int64), prepend=0).tolist()
"""Bytes of the piece that ends with each hash of a line."""


def simulate_text_lru(
    table: HashTable, text_bytes: Ints, prefix_order: Ints, order: Ints, capacity_bytes: float
) -> int:
    """Serve the lines in `order`, one at a time, from an LRU cache and count the bytes of text that are hit.

    What a line shares with nobody is one piece. A line that does not fit at all is passed over.

    Args:
        text_bytes: of each line's prompt. prefix_order: all lines in the order of their prefixes.
    """
    shared_by = _deepest(table, prefix_order)
    cache: OrderedDict[int, int] = OrderedDict()  # piece to bytes; the next to give up comes first
    held = hits = 0
    for line in order.tolist():
        start, depth = int(table.starts[line]), int(shared_by[line])
        pieces = table.hashes[start + 1 : start + depth].tolist()
        whole = int(text_bytes[line])
        if whole > capacity_bytes:
            continue
        is_hit = True
        for place, piece in enumerate(pieces, 1):
            known = cache.pop(piece, 0)
            is_hit = is_hit and known > 0
            hits += _SIZES[place] if is_hit else 0
            held -= known
        while held and held > capacity_bytes - whole:
            held -= cache.popitem(last=False)[1]
        own = whole - int(END_OF_HASH[max(depth - 1, 0)])
        if own:
            cache[-1 - line] = own
            held += own
        for place in range(len(pieces), 0, -1):
            if cache.setdefault(pieces[place - 1], _SIZES[place]):
                held += _SIZES[place]
    return hits


def _deepest(table: HashTable, prefix_order: Ints) -> Ints:
    """(num_lines,): leading hashes that each line shares with any other."""
    shared = shared_depths(table, prefix_order)
    deepest = np.zeros(len(prefix_order), dtype=np.int64)
    deepest[prefix_order] = np.maximum(shared, np.append(shared[1:], 0)[: len(shared)])
    return deepest
