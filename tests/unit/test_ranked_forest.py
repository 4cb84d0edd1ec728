# SPDX-License-Identifier: Apache-2.0
"""Every node of a RankedForest knows the first who waits below it, whoever has left."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.prefix.ranked_forest import RankedForest

paths = st.lists(st.integers(0, 2), min_size=1, max_size=5)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), paths, st.integers(0, 3)),
        st.tuples(st.just("remove"), st.integers(0, 50)),
    ),
    max_size=60,
)


def chained(path: list[int]) -> list[tuple[int, ...]]:
    return [tuple(path[: end + 1]) for end in range(len(path))]


@settings(max_examples=400)
@given(steps=operations)
def test_ranks_and_order_are_those_of_who_waits(steps) -> None:
    forest: RankedForest[int] = RankedForest(block_size=4)
    waiting: dict[int, tuple[list[int], tuple[int, int]]] = {}
    for serial, (operation, *values) in enumerate(steps):
        if operation == "add":
            waiting[serial] = values[0], (values[1], serial)
            forest.insert(serial, chained(values[0]), waiting[serial][1])
        elif waiting:
            item = list(waiting)[values[0] % len(waiting)]
            forest.remove(item)
            del waiting[item]
        forest.check_integrity()  # compares each node's rank with the smallest below it
        firsts: dict[int, tuple[int, int]] = {}
        for path, rank in waiting.values():
            firsts[path[0]] = min(rank, firsts.get(path[0], rank))
        trees = [node.hashes[0][0] for node in forest.ordered_children(forest.root)]
        assert trees == sorted(firsts, key=firsts.__getitem__)
        if waiting:
            assert forest.best_child(forest.root).hashes[0][0] == trees[0]


def test_a_node_at_which_many_end_follows_whoever_leaves_it() -> None:
    forest: RankedForest[int] = RankedForest(block_size=4)
    for number in range(1000):
        forest.insert(number, ["a"], number % 97)
    for number in sorted(range(1000), key=lambda number: (number % 97, number)):
        assert forest.best_child(forest.root).rank == number % 97
        forest.remove(number)
    forest.check_integrity()
    assert not forest.root.children
