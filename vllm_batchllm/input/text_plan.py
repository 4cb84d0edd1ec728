# SPDX-License-Identifier: Apache-2.0
"""The plan of a job: in which order its lines are computed, which need not be, and what each adds to those before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_batchllm.input.prompt_text import shared_text_bytes
from vllm_batchllm.input.scan import Digests, Input
from vllm_batchllm.prefix.prefix_order import Ints, prefix_order


@dataclass(frozen=True, slots=True)
class TextPlan:
    """In what order lines are computed.

    order: indices of lines, each once. new_bytes: (len(order),), prompt text that a line does not share with the one before.
    leader: (num_lines,), the first line that asks exactly the same, whose answer does for both; itself for those in the order.
    is_refused: (num_lines,), lines that are answered without asking anybody.
    """

    order: Ints
    new_bytes: Ints
    leader: Ints
    is_refused: npt.NDArray[np.bool_]

    @property
    def num_new_bytes(self) -> int:
        """Prompt text to be computed where whatever neighbours share is computed once."""
        return int(self.new_bytes.sum())


class Followers:
    """Lines that wait for another's answer, by that other; arrays, whatever their number.

    Args:
        leader: as in `TextPlan`.
    """

    def __init__(self, leader: Ints) -> None:
        others = np.flatnonzero(leader != np.arange(len(leader)))
        self._lines = others[np.argsort(leader[others], kind="stable")]
        self._leaders = leader[self._lines]

    def of(self, index: int) -> list[int]:
        """Those that get the answer of the line at ``index``, ascending. O(log n)."""
        first, end = np.searchsorted(self._leaders, [index, index + 1])
        lines: list[int] = self._lines[first:end].tolist()
        return lines


def make_plan(
    source: Input, lines: Ints, is_refused: npt.NDArray[np.bool_], *, dedupe: bool = True
) -> TextPlan:
    """Plan ``lines`` (indices, ascending) of ``source``. Bad lines among them come first.

    Args:
        dedupe: compute exact duplicates once.
    """
    alike = lines[~is_refused[lines]] if dedupe else lines[:0]
    leader = _first_equal(source.bodies, alike, len(source))
    order = prefix_order(source.table, lines[leader[lines] == lines])
    return TextPlan(order, new_bytes_of(source, order), leader, is_refused)


def new_bytes_of(source: Input, order: Ints) -> Ints:
    """(len(order),): prompt text that each line does not share with the one before it in ``order``."""
    new_bytes: Ints = source.text_bytes[order] - shared_text_bytes(source.table, order)
    return new_bytes


def repeated_ids(source: Input) -> npt.NDArray[np.bool_]:
    """(num_lines,): whether an earlier good line has the same name."""
    good = np.flatnonzero(~source.is_bad)
    first = _first_equal(source.ids, good, len(source))
    is_repeated: npt.NDArray[np.bool_] = first != np.arange(len(source))
    return is_repeated


def _first_equal(digests: Digests, lines: Ints, num_lines: int) -> Ints:
    """(num_lines,): for each of ``lines`` the first of them with an equal digest; itself for all others."""
    first = np.arange(num_lines, dtype=np.int64)
    if not len(lines):
        return first
    own = digests[lines]
    arranged = np.lexsort((lines, own[:, 1], own[:, 0]))
    sorted_own, sorted_lines = own[arranged], lines[arranged]
    begins = np.ones(len(lines), dtype=bool)
    begins[1:] = (sorted_own[1:] != sorted_own[:-1]).any(axis=1)
    first[sorted_lines] = sorted_lines[begins][np.cumsum(begins) - 1]
    return first
