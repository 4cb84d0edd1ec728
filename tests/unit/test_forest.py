# SPDX-License-Identifier: Apache-2.0
"""PrefixForest keeps exactly the shared prefixes of what waits in it."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefix_trie_oracle import Item

from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.node import Load, PrefixNode

paths = st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple)


def prefix_of(node: PrefixNode[Item]) -> tuple[int, ...]:
    return node.hashes[node.end - 1] if node.end else ()


def all_nodes(forest: PrefixForest[Item]) -> list[PrefixNode[Item]]:
    nodes = [forest.root]
    for node in nodes:
        nodes.extend((node.children or {}).values())
    return nodes


@given(st.lists(paths, max_size=30), st.randoms(use_true_random=False))
def test_counts_and_sums_equal_those_of_a_plain_scan(path_list, random) -> None:
    forest: PrefixForest[Item] = PrefixForest(block_size=4)
    waiting: list[Item] = []
    for number, path in enumerate(path_list):
        item = Item(number, path, tail=number % 4, max_tokens=number % 7)
        forest.insert(item, item.block_hashes, number, Load(item.max_tokens, item.tail))
        waiting.append(item)
        if random.random() < 0.4:
            forest.remove(waiting.pop(random.randrange(len(waiting))))
        forest.check_integrity()
    for node in all_nodes(forest):
        prefix = prefix_of(node)
        below = [item for item in waiting if item.path[: len(prefix)] == prefix]
        blocks = {i.path[:e] for i in below for e in range(node.start + 1, len(i.path) + 1)}
        assert node.num_waiting == len(below)
        assert node.num_output_tokens == sum(item.max_tokens for item in below)
        assert node.num_prompt_tokens == 4 * len(blocks) + sum(item.tail for item in below)


@given(st.lists(paths, min_size=1, max_size=30))
def test_the_forest_is_as_small_as_a_radix_forest_can_be(path_list) -> None:
    forest: PrefixForest[Item] = PrefixForest(block_size=4)
    items = [Item(number, path) for number, path in enumerate(path_list)]
    for number, item in enumerate(items):
        forest.insert(item, item.block_hashes, number)
    for node in all_nodes(forest)[1:]:
        assert list(node.ending_here()) or len(node.children or {}) >= 2, (
            "a node that need not exist"
        )
    for item in items:
        forest.remove(item)
    assert len(forest) == 0 and not forest.root.children


@pytest.mark.parametrize("tail", [0, 3])
def test_many_equal_prompts_leave_in_order_of_arrival(tail) -> None:
    forest: PrefixForest[Item] = PrefixForest(block_size=4)
    items = [Item(number, (1, 2), tail=tail, max_tokens=1) for number in range(50)]
    for item in items:
        forest.insert(item, item.block_hashes, item.name, Load(1, tail))
    node = forest.node_of(items[0])
    # in a plain dict the first of many is behind all that have left
    assert isinstance(node.members if tail else node.aligned, OrderedDict)
    forest.remove(items.pop(30))
    for item in items:
        assert next(node.ending_here()) is item
        forest.remove(item)
    assert not forest


def test_no_hash_is_copied() -> None:
    forest: PrefixForest[Item] = PrefixForest(block_size=4)
    long, short = Item(0, (1, 2, 3, 4)), Item(1, (1, 2, 9))
    forest.insert(long, long.block_hashes, 0)
    forest.insert(short, short.block_hashes, 1)
    assert {id(node.hashes) for node in all_nodes(forest)[1:]} == {
        id(long.block_hashes),
        id(short.block_hashes),
    }


def test_a_run_counts_as_computed_once_a_member_was_admitted() -> None:
    forest: PrefixForest[Item] = PrefixForest(block_size=4)
    first, second = Item(0, (1, 2, 3)), Item(1, (1, 2, 4))
    for item in (first, second):
        forest.insert(item, item.block_hashes, item.name)
    (tree,) = forest.root.children.values()
    assert tree.num_prompt_tokens == 4 * 4
    forest.remove(first, admitted=True)
    assert tree.num_prompt_tokens == 4 * 1
    forest.check_integrity()


@pytest.mark.parametrize("block_size", [0, -1])
def test_a_block_size_below_one_is_refused(block_size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 token, got {block_size}"):
        PrefixForest(block_size)


def test_items_without_hashes_and_items_twice_are_refused() -> None:
    forest: PrefixForest[Item] = PrefixForest(block_size=4)
    item = Item(0, (1,))
    forest.insert(item, item.block_hashes, 0)
    with pytest.raises(ValueError, match="waits in this forest already"):
        forest.insert(item, item.block_hashes, 1)
    with pytest.raises(ValueError, match="no block hashes"):
        forest.insert(Item(1, ()), [], 1)
    with pytest.raises(KeyError):
        forest.remove(Item(2, (1,)))
