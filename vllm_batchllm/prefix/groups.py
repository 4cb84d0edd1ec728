# SPDX-License-Identifier: Apache-2.0
"""Groups of one level: every request shares one prefix with its group, and nothing else.

The scheduler's walk reuses every level of the tree and needs none of this. One level is what the
published method plans with, what an attention kernel for shared prefixes can use, and what a
person can read. Three ways to choose it: the best partition of the requests, the published
greedy rule, and the best set of nodes none of which lies below another.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class RadixNode(Protocol[T_co]):
    """A node of a radix tree; :class:`~vllm_batchllm.prefix.forest.PrefixNode` is one.

    end: blocks from the root to the end of its run. num_waiting: requests at or below it.
    ending_here: requests that end here, in the order in which they are served. children: by any
    key.
    """

    @property
    def end(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def children(self) -> Mapping[Hashable, RadixNode[T_co]] | None: ...
    def ending_here(self) -> Iterator[T_co]: ...


class RadixTree(Protocol[T_co]):
    """A radix tree; its root has no blocks."""

    @property
    def root(self) -> RadixNode[T_co]: ...


@dataclass(frozen=True, slots=True)
class RequestGroup(Generic[T]):
    """Requests that share their first `num_prefix_blocks` blocks, computed once for all of them.

    `members` are in prefix order: what shares more of the prompt stands together, and a prompt
    comes before those that extend it. A request alone is a group with a prefix of 0 blocks.
    """

    num_prefix_blocks: int
    members: tuple[T, ...]


def exact_groups(tree: RadixTree[T]) -> list[RequestGroup[T]]:
    """Partition the requests so that the groups save as much as any single-level choice can.

    For a node that ends at block D, with requests that fall back to a group of depth p < D if
    the node is no group, the most that can be saved at and below it is the larger of

    - n * p + sum of the children's best, with p to fall back to, and
    - -D + n * D + sum of the children's best, with D to fall back to,

    where n requests end at the node. Only depths of ancestors occur as p, so one number per node
    and ancestor is kept: O(sum of depths) time. The second figure does not depend on p and the
    first grows with it, so one threshold per node holds the decision. Among equally good
    partitions one with the fewest groups is taken, requests alone included.
    """
    branches = _branches(tree.root)
    groups_at = _owners(branches, _thresholds(branches, tree.root.num_waiting + 1))
    members: dict[int, list[T]] = {}
    for branch, owner in zip(branches, groups_at, strict=True):
        members.setdefault(owner, []).extend(branch.loose)
    alone = members.pop(0)
    groups = [RequestGroup(branches[at].end, tuple(some)) for at, some in members.items()]
    return groups + [RequestGroup(0, (request,)) for request in alone]


def greedy_groups(tree: RadixTree[T]) -> list[RequestGroup[T]]:
    """Partition the requests by the published greedy rule (BatchLLM, arXiv 2412.03594).

    Bottom-up, for a child c of a node and a child g of c: if (leaves(g) - 1) * tokens(g) exceeds
    tokens(c), g takes a copy of c's tokens and becomes a sibling of c; a c that is left with one
    child merges with it. In the end every child of the root is a group. Requests that end at an
    inner node, or are duplicates, count as leaves of their own without tokens. Blocks stand for
    tokens, since both sides of the comparison scale alike. O(sum of depths).
    """
    branches = _branches(tree.root)
    for at in reversed(range(len(branches))):
        node = branches[at]
        children: list[int] = []
        for child in node.children:
            children.extend(_enlarge(branches, branches[child], node))
            if branches[child].num_leaves > 0:
                children.extend(_settle(branches, child, node))
        node.children = children
        node.num_leaves = len(node.loose) + sum(branches[i].num_leaves for i in children)
    root = branches[0]
    groups = [RequestGroup(branches[at].end, tuple(_leaves(branches, at))) for at in root.children]
    return groups + [RequestGroup(0, (request,)) for request in root.loose]


class Nested(Protocol):
    """A node that knows what encloses it."""

    @property
    def parent(self) -> Nested | None: ...


N = TypeVar("N", bound=Nested)


def disjoint_nodes(nodes: Sequence[N], worth: Callable[[N], int]) -> list[N]:
    """Return the nodes worth most together, none of which lies below another; worth > 0.

    Narrower than :func:`exact_groups`: a node takes everything below it, so no request is left
    over for a wider group. Where a node is worth as much as the best below it, it is taken.

    Args:
        nodes: each behind its parent, if that is among them. O(len(nodes)).
        worth: of one node, at least 0.
    """
    best: dict[Nested, int] = {}
    chosen: set[Nested] = set()
    for node in reversed(nodes):
        own = worth(node)
        if own and own >= best.get(node, 0):
            best[node] = own
            chosen.add(node)
        if node.parent is not None:
            best[node.parent] = best.get(node.parent, 0) + best.get(node, 0)
    covered: set[Nested | None] = set()
    result = []
    for node in nodes:
        if node.parent in covered:
            covered.add(node)
        elif node in chosen:
            covered.add(node)
            result.append(node)
    return result


@dataclass(slots=True, eq=False)
class _Branch(Generic[T]):
    """A node that several requests pass.

    loose: requests that end here or share nothing below. children, parent: indices of branches.
    num_leaves: requests left at or below it while the greedy rule moves others away.
    """

    end: int
    level: int
    parent: int
    loose: list[T]
    children: list[int]
    num_leaves: int


def _branches(root: RadixNode[T]) -> list[_Branch[T]]:
    """Return the branches of the compact tree in depth-first order, the root first.

    A node that ends nothing and has one child says nothing; such nodes stay behind in a forest
    where requests were removed.
    """
    branches: list[_Branch[T]] = []
    stack = [(root, -1)]
    while stack:
        node, parent = stack.pop()
        loose = list(node.ending_here())
        while parent >= 0 and not loose and len(node.children or ()) == 1:
            node = _first_child(node)
            loose = list(node.ending_here())
        at = len(branches)
        level = branches[parent].level + 1 if parent >= 0 else 0
        branches.append(_Branch(node.end, level, parent, loose, [], node.num_waiting))
        if parent >= 0:
            branches[parent].children.append(at)
        shared = []
        for child in (node.children or {}).values():
            if child.num_waiting > 1:
                shared.append((child, at))
            else:
                loose.append(_only_request(child))
        stack.extend(reversed(shared))
    return branches


def _first_child(node: RadixNode[T]) -> RadixNode[T]:
    return next(iter((node.children or {}).values()))


def _only_request(node: RadixNode[T]) -> T:
    while (request := next(node.ending_here(), None)) is None:
        node = _first_child(node)
    return request


def _thresholds(branches: list[_Branch[T]], scale: int) -> list[int]:
    """For each branch, the level of group from which on it pays more to fall back.

    Scores are saved blocks * `scale` - groups, so that groups decide between equal savings.
    """
    thresholds = [0] * len(branches)
    below: list[list[int] | None] = [None] * len(branches)
    for at in range(len(branches) - 1, 0, -1):
        branch = branches[at]
        num_loose = len(branch.loose)
        kept = below[at] or [0] * (branch.level + 1)
        below[at] = None
        own = kept.pop() + (num_loose - 1) * branch.end * scale - 1
        if num_loose:
            kept[0] -= num_loose  # with nothing to fall back to, each is a group
            for level, depth in enumerate(_depths_above(branches, branch)):
                kept[level] += num_loose * depth * scale
        threshold = thresholds[at] = bisect_left(kept, own)
        kept[:threshold] = [own] * threshold
        others = below[branch.parent]
        below[branch.parent] = (
            kept if others is None else [a + b for a, b in zip(others, kept, strict=True)]
        )
    return thresholds


def _depths_above(branches: list[_Branch[T]], branch: _Branch[T]) -> list[int]:
    """Return the ends of the branches above, the root's first."""
    depths = []
    while branch.parent >= 0:
        branch = branches[branch.parent]
        depths.append(branch.end)
    return depths[::-1]


def _owners(branches: list[_Branch[T]], thresholds: list[int]) -> list[int]:
    """For each branch, the branch whose group its requests join; 0 for none."""
    owners = [0] * len(branches)
    for at in range(1, len(branches)):
        owner = owners[branches[at].parent]
        owners[at] = at if branches[owner].level < thresholds[at] else owner
    return owners


def _enlarge(branches: list[_Branch[T]], child: _Branch[T], node: _Branch[T]) -> list[int]:
    """Take the grandchildren that gain by a prefix of their own away from `child`."""
    moved, stay = [], []
    for at in child.children:
        grandchild = branches[at]
        gain = (grandchild.num_leaves - 1) * (grandchild.end - child.end)
        if gain > child.end - node.end:
            moved.append(at)
            child.num_leaves -= grandchild.num_leaves
        else:
            stay.append(at)
    child.children = stay
    return moved


def _settle(branches: list[_Branch[T]], at: int, node: _Branch[T]) -> list[int]:
    """What is left of a child: itself, the one branch it merges with, or one request."""
    child = branches[at]
    if child.num_leaves == 1:
        node.loose.extend(child.loose)
        return []
    if not child.loose and len(child.children) == 1:
        return child.children
    return [at]


def _leaves(branches: list[_Branch[T]], top: int) -> Iterator[T]:
    stack = [top]
    while stack:
        branch = branches[stack.pop()]
        yield from branch.loose
        stack.extend(reversed(branch.children))
