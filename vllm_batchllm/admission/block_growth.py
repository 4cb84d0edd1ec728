# SPDX-License-Identifier: Apache-2.0
"""Blocks of many requests that grow by a token a step, at many moments ahead, without a table of
requests x moments or requests x block size."""

from __future__ import annotations

import numpy as np

from vllm_batchllm.admission.shared_blocks import Ints

_CHUNK = 32
"""Requests counted together; what is left over is compared one by one."""


def growing_blocks(
    num_tokens: Ints, begins: Ints, remaining: Ints, times: Ints, block_size: int
) -> Ints:
    """Blocks behind position ``begins`` of all that have not ended, at each of ``times``.

    A request has ``num_tokens`` tokens now, at least 1, and ends after ``remaining`` steps; one below
    0 is over already. With ``n = a * size + b + 1`` tokens it has ``a + 1 + (b + t) // size`` blocks
    ``t`` steps later, which is ``a + 1 + t // size``, and one more if ``b + t % size`` reaches the
    size. O(n log n + n * block_size / 32 + 32 * len(times)).
    """
    order = np.argsort(-remaining, kind="stable")
    num_alive = np.searchsorted(-remaining[order], -times, side="right")
    whole, rest = np.divmod(num_tokens[order] - 1, block_size)
    base = np.concatenate(([0], np.cumsum(whole + 1 - begins[order])))
    held: Ints = base[num_alive] + num_alive * (times // block_size)
    return held + _num_reaching(rest, num_alive, block_size - times % block_size, block_size)


def _num_reaching(values: Ints, firsts: Ints, least: Ints, size: int) -> Ints:
    """Of the first ``firsts`` of ``values``, each below ``size``: how many are ``least`` or more."""
    num_chunks = len(values) // _CHUNK
    in_chunks = values[: num_chunks * _CHUNK]
    chunk = np.repeat(np.arange(num_chunks), _CHUNK)
    counts = np.bincount(chunk * (size + 1) + in_chunks, minlength=num_chunks * (size + 1))
    table = np.zeros((num_chunks + 1, size + 1), np.int64)
    table[1:] = counts.reshape(num_chunks, size + 1)[:, ::-1].cumsum(axis=1)[:, ::-1]
    np.cumsum(table, axis=0, out=table)
    whole = firsts // _CHUNK
    left = whole[:, None] * _CHUNK + np.arange(_CHUNK)
    padded = np.concatenate((values, np.full(_CHUNK, -1)))
    counted = (left < firsts[:, None]) & (padded[left] >= least[:, None])
    reaching: Ints = table[whole, least] + counted.sum(axis=1)
    return reaching
