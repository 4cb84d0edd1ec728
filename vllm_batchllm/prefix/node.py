# SPDX-License-Identifier: Apache-2.0
"""A node of the prefix forest: a run of blocks, and sums over everything that waits below it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from vllm_batchllm.prefix.hashing import num_equal

T = TypeVar("T", bound=Hashable)
Rank = Any  # totally ordered; smaller arrived earlier
Key = Any  # totally ordered; smaller is opened earlier


class Load(NamedTuple):
    """Work that one waiting item brings, beside the blocks it may share.

    num_output_tokens: expected output, tokens.
    num_tail_tokens: prompt tokens behind the last full block, computed for this item alone.
    """

    num_output_tokens: int
    num_tail_tokens: int


NO_LOAD = Load(0, 0)


@lru_cache(maxsize=4096)
def load_of(num_output_tokens: int, num_tail_tokens: int) -> Load:
    """A :class:`Load`, the same object for equal figures as long as few differ.

    A million requests are alike in this. Python's garbage collector looks through whatever was
    made, and a load for each request made filing them an eighth slower.
    """
    return Load(num_output_tokens, num_tail_tokens)


FEW = 8
"""Items that a plain dict may hold; it is smaller than an OrderedDict, and most nodes have one."""


def with_item(items: dict[T, Load] | None, item: T, load: Load) -> dict[T, Load]:
    """``items`` with one more, in order of addition; a new object where the old one does not do.

    The first of many is found in O(1) however many before it were removed, which a plain dict does
    not promise.
    """
    if items is None:
        return {item: load}
    if len(items) == FEW:
        items = OrderedDict(items)
    items[item] = load
    return items


class PrefixNode(Generic[T]):
    """A run of blocks ``hashes[start:end]`` shared by everything at or below it.

    ``num_waiting``, ``num_output_tokens`` and ``num_prompt_tokens`` sum over the whole subtree;
    ``num_prompt_tokens`` counts each shared block once and leaves out runs already computed.
    ``rank`` is that of the earliest arrival below. ``retained`` belongs to the forest's observer.

    Items that end here are in ``aligned`` if their prompt ends with the run's last block, else
    in ``members``. The aligned come first: a prompt is never hit to its very end, so an aligned
    one that came second would compute its last block again.
    """

    __slots__ = (
        "aligned",
        "children",
        "computed",
        "end",
        "hashes",
        "heap",
        "key",
        "members",
        "num_output_tokens",
        "num_prompt_tokens",
        "num_waiting",
        "parent",
        "rank",
        "retained",
        "start",
    )

    def __init__(
        self,
        hashes: Sequence[Hashable],
        start: int,
        end: int,
        parent: PrefixNode[T] | None,
        rank: Rank,
    ) -> None:
        self.hashes = hashes
        self.start = start
        self.end = end
        self.parent = parent
        self.rank = rank
        self.children: dict[Hashable, PrefixNode[T]] | None = None
        self.members: dict[T, Load] | None = None
        self.aligned: dict[T, Load] | None = None
        self.num_waiting = 0
        self.num_output_tokens = 0
        self.num_prompt_tokens = 0
        self.computed = False
        self.heap: list[tuple[Key, int, PrefixNode[T]]] | None = None
        self.key: Key = None
        self.retained: Any = None

    def ending_here(self) -> Iterator[T]:
        """Items whose hashes end with this run, in the order in which they are served."""
        yield from self.aligned or ()
        yield from self.members or ()

    def match_end(self, hashes: Sequence[Hashable]) -> int:
        """First position where ``hashes`` leaves this node's run, given that it enters it."""
        return num_equal(self.hashes, hashes, self.start + 1, self.end)

    @property
    def num_blocks(self) -> int:
        """Blocks in this node's own run."""
        return self.end - self.start
