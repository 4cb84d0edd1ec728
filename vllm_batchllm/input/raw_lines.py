# SPDX-License-Identifier: Apache-2.0
"""Lines of a plain file as bytes, with where they stand; memory holds one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def raw_lines(
    stream: BinaryIO, max_line_bytes: int, update: Callable[[bytes], object] = len
) -> Iterator[tuple[int, int, int, bytes | None]]:
    """Number, offset, length and bytes of every line that is not blank; None for the bytes of one that is too long.

    update: is given all bytes of the file in their order.
    """
    number = offset = 0
    while raw := stream.readline(max_line_bytes + 1):
        number += 1
        update(raw)
        start, whole = offset, len(raw) <= max_line_bytes
        offset += len(raw)
        while not whole and raw and not raw.endswith(b"\n"):
            raw = stream.readline(max_line_bytes)
            update(raw)
            offset += len(raw)
        if number == 1 and raw.startswith(BYTE_ORDER_MARK):
            raw = raw[len(BYTE_ORDER_MARK) :]
            start += len(BYTE_ORDER_MARK)
        if not whole:
            yield number, start, offset - start, None
        elif raw.strip():
            yield number, start, offset - start, raw
