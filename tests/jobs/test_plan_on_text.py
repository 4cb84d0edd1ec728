# SPDX-License-Identifier: Apache-2.0
"""The order of a job: against a plain recursive walk, against the forest of the scheduler, and what it is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from job_files import chat_line, write_lines

from vllm_batchllm.input.line import NO_DEFAULTS, parse_line
from vllm_batchllm.input.prompt_text import END_OF_HASH, body_digest, chained_hashes, piece_ends
from vllm_batchllm.input.scan import scan
from vllm_batchllm.input.text_plan import Followers, make_plan, repeated_ids
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.prefix_order import HashTable, prefix_order, shared_depths

CHOICES = st.lists(st.lists(st.integers(0, 1), max_size=7), max_size=14)


def chained(choices: Sequence[int]) -> list[int]:
    """Hashes of which each stands for everything before it, too."""
    hashes, packed = [], b""
    for choice in choices:
        packed += bytes([choice])
        hashes.append(int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest()))
    return hashes


def table_of(lines: Sequence[Sequence[int]]) -> HashTable:
    starts = np.cumsum([0, *map(len, lines)]).astype(np.int64)
    return HashTable(np.array([h for line in lines for h in line], dtype=np.uint64), starts)


def walked(lines: Sequence[Sequence[int]]) -> list[int]:
    """Depth first, siblings by their first line, lines that end before those that go on."""

    def below(members: list[int], depth: int) -> list[int]:
        order = [line for line in members if len(lines[line]) <= depth]
        children: dict[int, list[int]] = {}
        for line in members:
            if len(lines[line]) > depth:
                children.setdefault(lines[line][depth], []).append(line)
        for child in children.values():
            order += below(child, depth + 1)
        return order

    return below(list(range(len(lines))), 0)


@given(CHOICES)
def test_the_order_is_a_walk_depth_first(choices: list[list[int]]) -> None:
    lines = [chained(one) for one in choices]
    order = prefix_order(table_of(lines), np.arange(len(lines)))
    assert order.tolist() == walked(lines)


@given(CHOICES)
def test_the_order_keeps_groups_as_the_schedulers_forest_does(choices: list[list[int]]) -> None:
    lines = [chained(one) for one in choices]
    forest: PrefixForest[int] = PrefixForest(block_size=1)
    for index, hashes in enumerate(lines):
        if hashes:
            forest.insert(index, hashes, (index,))
    order = [i for i in prefix_order(table_of(lines), np.arange(len(lines))).tolist() if lines[i]]
    assert order == list(forest.walk())


@given(CHOICES, st.data())
def test_shared_depths_are_common_leading_hashes(
    choices: list[list[int]], data: st.DataObject
) -> None:
    lines = [chained(one) for one in choices]
    order = np.array(data.draw(st.permutations(range(len(lines)))), dtype=np.int64)
    shared = shared_depths(table_of(lines), order).tolist()
    for place in range(1, len(order)):
        left, right = lines[order[place - 1]], lines[order[place]]
        equal = [a == b for a, b in zip(left, right, strict=False)] + [False]
        assert shared[place] == equal.index(False)


@given(st.integers(0, 200_000))
def test_pieces_lie_within_the_text(num_bytes: int) -> None:
    ends = piece_ends(num_bytes)
    assert ends == sorted(set(ends)) and all(0 < end <= num_bytes for end in ends)
    assert list(END_OF_HASH)[1 : len(ends) + 1] == ends


def hashes_of(text: str, **body: object) -> list[int]:
    import json

    raw = json.dumps(chat_line("a", text, **body)).encode()
    return list(chained_hashes(parse_line(1, raw, NO_DEFAULTS, 10**9))[0])


def test_equal_text_gives_equal_hashes_and_nothing_else_does() -> None:
    shared = "s" * 300
    left, right = hashes_of(shared + "a" * 100), hashes_of(shared + "b" * 100)
    assert left[:5] == right[:5] and left[5:] != right[5:]
    other_model = hashes_of(shared, model="adapter")
    assert not set(other_model) & set(left)
    assert not set(hashes_of(shared, tools=[{"type": "function"}])) & set(left)
    assert hashes_of(shared, temperature=0.5)[:5] == left[:5], "parameters share no less"


def test_an_image_counts_by_its_digest() -> None:
    def with_image(data: str) -> list[int]:
        parts = [
            {"type": "image_url", "image_url": {"url": data}},
            {"type": "text", "text": "x" * 200},
        ]
        return hashes_of("", messages=[{"role": "user", "content": parts}])

    one, other = with_image("data:" + "a" * 10**6), with_image("data:" + "a" * 10**6 + "b")
    assert len(one) == len(other) < 10 and one != other


def test_only_lines_whose_answer_is_fixed_have_twins(tmp_path: Path) -> None:
    text = "the same"
    path = write_lines(
        tmp_path / "in",
        [
            chat_line("drawn", text, temperature=1),
            chat_line("drawn-too", text, temperature=1),
            chat_line("greedy", text, temperature=0),
            chat_line("greedy-too", text, temperature=0),
            chat_line("other", text, temperature=0, max_tokens=3),
            chat_line("seeded", text, seed=1),
            chat_line("seeded-too", text, seed=1),
        ],
    )
    source = scan(path)
    plan = make_plan(source, np.arange(len(source)), source.is_bad)
    followers = Followers(plan.leader)
    found = {index: followers.of(index) for index in range(len(source)) if followers.of(index)}
    assert found == {2: [3], 5: [6]}
    assert sorted(plan.order.tolist()) == [0, 1, 2, 4, 5]
    every = make_plan(source, np.arange(len(source)), source.is_bad, dedupe=False)
    assert sorted(every.order.tolist()) == list(range(len(source)))


def test_a_line_without_prompt_has_a_digest_of_its_own() -> None:
    raw = b'{"custom_id": "a", "method": "POST", "url": "/score", "body": {"text_1": "x", "text_2": "y"}}'
    line = parse_line(1, raw, NO_DEFAULTS, 10**6)
    assert len(body_digest(line)) == 16 and len(chained_hashes(line)[0]) == 1


def test_repeated_names_are_found_wherever_they_stand(tmp_path: Path) -> None:
    lines = [chat_line(name, name) for name in ("a", "b", "a", "c", "b", "a")]
    source = scan(write_lines(tmp_path / "in", lines))
    assert repeated_ids(source).tolist() == [False, False, True, False, True, True]


def test_new_bytes_are_what_a_line_adds(tmp_path: Path) -> None:
    shared = "s" * 1000
    lines = [chat_line("a", shared + "x" * 500), chat_line("b", shared + "y" * 500)]
    source = scan(write_lines(tmp_path / "in", lines))
    plan = make_plan(source, np.arange(2), source.is_bad)
    assert plan.new_bytes[0] == source.text_bytes[0]
    assert 500 <= plan.new_bytes[1] < 500 + 64 + 1
