# SPDX-License-Identifier: Apache-2.0
"""Single-level groups: the best partition, the published greedy rule, and disjoint nodes."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.groups import (
    RequestGroup,
    disjoint_nodes,
    exact_groups,
    greedy_groups,
)

Path = tuple[int, ...]
GROUPINGS = [exact_groups, greedy_groups]
by_name = pytest.mark.parametrize("grouping", GROUPINGS, ids=lambda f: f.__name__)
paths = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), max_size=12)


def forest_of(prompts: Sequence[Path]) -> PrefixForest[int]:
    """Requests 0, 1, … with one block per symbol; a chained hash is the prefix itself."""
    forest: PrefixForest[int] = PrefixForest(block_size=1)
    for request, path in enumerate(prompts):
        forest.insert(request, [path[: end + 1] for end in range(len(path))], request)
    return forest


def random_prompts(rng: random.Random, num_prompts: int) -> list[Path]:
    """Prompts that go on from a random point of an earlier one, by a run of new blocks."""
    prompts: list[Path] = []
    symbols = iter(range(10**6))
    while len(prompts) < num_prompts:
        base = rng.choice(prompts) if prompts and rng.random() < 0.85 else ()
        path = base[: rng.randint(0, len(base))]
        path += tuple(next(symbols) for _ in range(rng.choice((0, 1, 1, 2, 3, 5))))
        if path:
            prompts.append(path)
    return prompts


def branching_prompts(rng: random.Random, num_prompts: int) -> list[Path]:
    """Prompts through a tree of three branches a node, each a run of 1 to 9 blocks."""
    runs: defaultdict[Path, int] = defaultdict(lambda: rng.randint(1, 9))
    prompts = []
    for _ in range(num_prompts):
        turns = tuple(rng.randrange(3) for _ in range(rng.randint(1, 4)))
        ends = [turns[: end + 1] for end in range(len(turns))]
        prompts.append(tuple(s for end in ends for s in [end[-1]] + [9] * (runs[end] - 1)))
    return prompts


def random_trees(
    grow: Callable[[random.Random, int], list[Path]], num_trees: int, num_prompts: int
) -> Iterator[list[Path]]:
    rng = random.Random(3)
    for _ in range(num_trees):
        yield grow(rng, rng.randint(1, num_prompts))


def saved(groups: Sequence[RequestGroup[int]]) -> int:
    return sum((len(group.members) - 1) * group.num_prefix_blocks for group in groups)


def best_by_brute_force(prompts: Sequence[Path]) -> tuple[int, int]:
    """Try every way to give each request one of its shared prefixes, or none.

    Returns the blocks saved at best, and -1 for each group that this takes at least.
    """
    counts = Counter(path[:end] for path in prompts for end in range(1, len(path) + 1))
    # Of prefixes with the same requests only the longest can be part of a best choice.
    extended = {prefix[:-1] for prefix, number in counts.items() if counts[prefix[:-1]] == number}
    useful = [prefix for prefix in counts if counts[prefix] > 1 and prefix not in extended]
    choices = [[(), *(p for p in useful if p == path[: len(p)])] for path in prompts]
    return max(
        (
            sum(map(len, chosen)) - sum(map(len, set(chosen))),
            -len(set(chosen) - {()}) - chosen.count(()),
        )
        for chosen in product(*choices)
    )


def greedy_by_the_book(prompts: Sequence[Path]) -> int:
    """The published rule, on a tree of lists [tokens, children], everything recounted."""
    root = [0, book_children(0, prompts)]
    enlarge(root)
    return sum((num_leaves(child) - 1) * child[0] for child in root[1])


def book_children(start: int, prompts: Sequence[Path]) -> list[list]:
    parts = defaultdict(list)
    for path in prompts:
        parts[path[start : start + 1]].append(path)
    children = [[0, []] for _ in parts.pop((), [])]
    for part in parts.values():
        end = start + 1
        while len({path[:end] for path in part}) == 1 and end <= min(map(len, part)):
            end += 1
        children.append([end - 1 - start, book_children(end - 1, part) if len(part) > 1 else []])
    return children


def num_leaves(node: list) -> int:
    return sum(map(num_leaves, node[1])) or 1


def enlarge(node: list) -> None:
    for child in list(node[1]):
        if not child[1]:
            continue
        enlarge(child)
        for grandchild in list(child[1]):
            if (num_leaves(grandchild) - 1) * grandchild[0] > child[0]:
                child[1].remove(grandchild)
                node[1].append([child[0] + grandchild[0], grandchild[1]])
        if len(child[1]) == 1:
            (left,) = child[1]
            child[:] = [child[0] + left[0], left[1]]
        elif not child[1]:
            node[1] = [other for other in node[1] if other is not child]


def test_exact_equals_brute_force_on_thousands_of_trees() -> None:
    for prompts in random_trees(random_prompts, num_trees=8000, num_prompts=7):
        groups = exact_groups(forest_of(prompts))
        assert (saved(groups), -len(groups)) == best_by_brute_force(prompts), prompts


@pytest.mark.parametrize(
    ("grow", "num_trees", "num_prompts", "worse_share", "mean_ratio"),
    [
        (random_prompts, 5000, 12, (0.01, 0.04), 0.998),
        (branching_prompts, 1200, 60, (0.25, 0.4), 0.995),
    ],
)
def test_greedy_follows_the_published_rule_and_never_beats_exact(
    grow: Callable[[random.Random, int], list[Path]],
    num_trees: int,
    num_prompts: int,
    worse_share: tuple[float, float],
    mean_ratio: float,
) -> None:
    ratios = []
    for prompts in random_trees(grow, num_trees, num_prompts):
        forest = forest_of(prompts)
        greedy, exact = saved(greedy_groups(forest)), saved(exact_groups(forest))
        assert greedy == greedy_by_the_book(prompts), prompts
        assert greedy <= exact
        if exact:
            ratios.append(greedy / exact)
    worse = sum(ratio < 1 for ratio in ratios) / len(ratios)
    mean = sum(ratios) / len(ratios)
    print(f"worse on {worse:.1%} of {len(ratios)}, mean {mean:.4f}, worst {min(ratios):.3f}")
    assert worse_share[0] < worse < worse_share[1]
    assert mean == pytest.approx(mean_ratio, abs=0.002)
    assert min(ratios) >= 0.7


@by_name
@given(paths)
def test_every_request_is_in_one_group_and_has_its_prefix(
    grouping: Callable[[PrefixForest[int]], list[RequestGroup[int]]], prompts: list[Path]
) -> None:
    groups = grouping(forest_of(prompts))
    assert sorted(r for group in groups for r in group.members) == list(range(len(prompts)))
    for group in groups:
        prefixes = {prompts[r][: group.num_prefix_blocks] for r in group.members}
        assert len(prefixes) == 1 and len(*prefixes) == group.num_prefix_blocks
        assert (len(group.members) == 1) == (group.num_prefix_blocks == 0)


@by_name
@given(paths)
def test_members_stand_in_prefix_order(
    grouping: Callable[[PrefixForest[int]], list[RequestGroup[int]]], prompts: list[Path]
) -> None:
    for group in grouping(forest_of(prompts)):
        members = [prompts[request] for request in group.members]
        for prefix in {path[:end] for path in members for end in range(len(path) + 1)}:
            places = [at for at, path in enumerate(members) if path[: len(prefix)] == prefix]
            assert places == list(range(places[0], places[-1] + 1)), "kept together"
            exact_match = [at for at in places if members[at] == prefix]
            assert exact_match == places[: len(exact_match)], "a prompt before its extensions"


@by_name
@settings(max_examples=200)
@given(paths, st.data())
def test_the_groups_do_not_depend_on_requests_that_have_left(
    grouping: Callable[[PrefixForest[int]], list[RequestGroup[int]]],
    prompts: list[Path],
    data: st.DataObject,
) -> None:
    forest = forest_of(prompts)
    gone = data.draw(st.sets(st.sampled_from(range(len(prompts))))) if prompts else set()
    for request in gone:
        forest.remove(request)
    fresh: PrefixForest[int] = PrefixForest(block_size=1)
    for request, path in enumerate(prompts):
        if request not in gone:
            fresh.insert(request, [path[: end + 1] for end in range(len(path))], request)
    assert partition(grouping(forest)) == partition(grouping(fresh))


@by_name
def test_a_node_that_only_a_removed_request_needed_changes_nothing(
    grouping: Callable[[PrefixForest[int]], list[RequestGroup[int]]],
) -> None:
    forest = forest_of([(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 6), (1, 2, 7), (1, 8)])
    forest.remove(4)  # (1,) is a node still; the rule must weigh (1, 2) as one
    assert partition(grouping(forest)) == {(2, frozenset(range(4)))}


def partition(groups: Sequence[RequestGroup[int]]) -> set[tuple[int, frozenset[int]]]:
    return {(group.num_prefix_blocks, frozenset(group.members)) for group in groups}


def test_a_group_keeps_what_a_deeper_group_leaves_over() -> None:
    prompts = [(1, 10), (1, 11), (1, 2, 3, 4, 12), (1, 2, 3, 4, 13)]
    expected = {(1, frozenset({0, 1})), (4, frozenset({2, 3}))}
    assert partition(exact_groups(forest_of(prompts))) == expected
    assert partition(greedy_groups(forest_of(prompts))) == expected


def test_greedy_keeps_a_wide_prefix_where_two_enlargements_together_would_pay() -> None:
    """Each child alone gains less than a copy costs; with both gone no copy is needed."""
    shared = (1, 1, 1)
    prompts = [(*shared, a, a, b) for a in (2, 3) for b in (4, 5)]
    assert partition(greedy_groups(forest_of(prompts))) == {(3, frozenset(range(4)))}
    assert partition(exact_groups(forest_of(prompts))) == {
        (5, frozenset({0, 1})),
        (5, frozenset({2, 3})),
    }


def test_of_equally_good_partitions_the_one_with_fewer_groups_is_taken() -> None:
    prompts = [(1, 2, 3), (1, 2, 4), (1, 5)]  # {0, 1, 2} at 1 saves 2, and so does {0, 1} at 2
    assert partition(exact_groups(forest_of([*prompts, (1, 6)]))) == {(1, frozenset(range(4)))}


@by_name
def test_prompts_nested_a_thousand_levels_deep(
    grouping: Callable[[PrefixForest[int]], list[RequestGroup[int]]],
) -> None:
    hashes = list(range(1200))
    forest: PrefixForest[int] = PrefixForest(block_size=1)
    for length in range(1, 1201):
        forest.insert(length, hashes[:length], length)
    groups = grouping(forest)
    assert sum(len(group.members) for group in groups) == 1200
    assert saved(groups) > 0


@given(paths)
def test_disjoint_nodes_are_worth_most_of_all_sets_of_nodes_apart(prompts: list[Path]) -> None:
    forest = forest_of(prompts[:6])
    nodes = [forest.root]
    for node in nodes:
        nodes.extend((node.children or {}).values())
    nodes = [node for node in nodes[1:] if node.num_waiting > 1]

    def worth(node: object) -> int:
        return (node.num_waiting - 1) * node.end  # type: ignore[attr-defined]

    chosen = disjoint_nodes(nodes, worth)
    prefixes = [tuple(node.hashes[node.end - 1]) for node in nodes]
    assert sum(map(worth, chosen)) == max(
        sum(worth(nodes[at]) for at in some) for some in apart(prefixes, list(range(len(nodes))))
    )


def apart(prefixes: list[Path], left: list[int]) -> Iterator[list[int]]:
    if not left:
        yield []
        return
    first, *rest = left
    yield from apart(prefixes, rest)
    here = prefixes[first]
    others = [at for at in rest if not related(here, prefixes[at])]
    yield from ([first, *some] for some in apart(prefixes, others))


def related(one: Path, other: Path) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]
