# SPDX-License-Identifier: Apache-2.0
"""Which quantile of the lengths learnt a request is planned with."""

from __future__ import annotations

from zlib import crc32

HEAD_QUANTILE = 0.8
"""Of the output length of a request that asks to start, unless the user chose one. A draw would let
a single unlucky head hold back all who wait behind it."""


def drawn_quantile(serial: int, num_generated: int) -> float:
    """A quantile drawn evenly from 0.01 to 0.99, the same whenever it is asked for.

    serial: of the admission, counted from the start of the engine. Not the request's id: vLLM puts
    random characters into ids, and schedulers that serve one batch together must decide alike.

    Many running requests, each planned with a draw from what was learnt, hold together what they
    will hold: where a tenth runs 25 times as long, a tenth is planned so. One quantile for all
    plans every one as short. A request that outgrows its draw gets another one.
    """
    drawn = crc32(f"{serial}/{num_generated}".encode()) / 2**32
    return 0.01 + 0.98 * drawn
