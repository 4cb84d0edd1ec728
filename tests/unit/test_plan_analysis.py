# SPDX-License-Identifier: Apache-2.0
"""The plan's figures and groups, against brute force over all prefixes."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_batchllm.input.tokenize import TokenizedRequest
from vllm_batchllm.plan.analysis import Plan, make_plan
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens

Prompt = Sequence[int]
Prefix = tuple[int, ...]
PROMPTS = st.lists(st.lists(st.integers(0, 1), max_size=8), max_size=10)
BLOCK_SIZE = st.integers(1, 3)
ALL = 10_000


def plan_of(prompts: Sequence[Prompt], block_size: int, **options: object) -> Plan:
    requests = [TokenizedRequest(array("I", prompt), b"", None) for prompt in prompts]
    return make_plan(requests, block_size, **options)  # type: ignore[arg-type]


def prefixes_of(prompts: Sequence[Prompt], block_size: int) -> set[Prefix]:
    ends = ((prompt, range(block_size, len(prompt) + 1, block_size)) for prompt in prompts)
    return {tuple(prompt[:end]) for prompt, some in ends for end in some}


def worth(prefix: Prefix, prompts: Sequence[Prompt], block_size: int) -> int:
    """Tokens saved if the prompts with this prefix share it and nothing else."""
    members = [prompt for prompt in prompts if tuple(prompt[: len(prefix)]) == prefix]
    shared = [prompt[: len(prefix) + 1] for prompt in members]  # what comes behind is cut off
    tails = [[*prompt[: len(prefix)], *[2 + index] * (len(prompt) > len(prefix))]
             for index, prompt in enumerate(shared)]  # fmt: skip
    return optimal_saved_tokens(tails, block_size)


def antichains(prefixes: Sequence[Prefix]) -> Iterator[list[Prefix]]:
    """Every set of prefixes none of which is a prefix of another."""
    if not prefixes:
        yield []
        return
    first, *rest = prefixes
    yield from antichains(rest)
    apart = [p for p in rest if first != p[: len(first)] and p != first[: len(p)]]
    yield from ([first, *others] for others in antichains(apart))


@given(st.lists(st.lists(st.integers(0, 1), max_size=5), max_size=7), BLOCK_SIZE)
@settings(max_examples=150)
def test_the_groups_are_the_best_choice_of_one_level(
    prompts: list[list[int]], block_size: int
) -> None:
    shared = [p for p in prefixes_of(prompts, block_size) if worth(p, prompts, block_size)]
    best = max(sum(worth(p, prompts, block_size) for p in chosen) for chosen in antichains(shared))
    plan = plan_of(prompts, block_size, top=ALL)
    assert sum(group.saved_tokens for group in plan.groups) == best
    assert plan.num_groups == len(plan.groups)
    assert all(group.num_members >= 2 and group.saved_tokens > 0 for group in plan.groups)


@given(PROMPTS, BLOCK_SIZE)
def test_the_levels_add_up_to_the_possible_saving(
    prompts: list[list[int]], block_size: int
) -> None:
    plan = plan_of(prompts, block_size, top=ALL, levels=True)
    saved = optimal_saved_tokens(prompts, block_size)
    assert sum(group.saved_tokens for group in plan.groups) == saved == plan.optimal_saved_tokens


@given(PROMPTS, BLOCK_SIZE)
def test_every_level_names_the_number_of_requests_that_share_it(
    prompts: list[list[int]], block_size: int
) -> None:
    plan = plan_of(prompts, block_size, top=ALL, levels=True)
    counts = sorted((group.prefix_tokens, group.num_members) for group in plan.groups)
    possible = [(len(p), sum(tuple(prompt[: len(p)]) == p for prompt in prompts))
                for p in prefixes_of(prompts, block_size)]  # fmt: skip
    for count in set(counts):
        assert counts.count(count) <= possible.count(count)


def tree_batch() -> list[list[int]]:
    """A system prompt of 16 tokens over documents of 64 (3 requests) and 32 (2 requests)."""
    system = list(range(16))
    long, short = system + [100] * 64, system + [200] * 32
    return [[*long, 1], [*short, 2], [*long, 3], [*short, 4], [*long, 5]]


def test_flat_groups_prefer_documents_to_the_system_prompt_they_share() -> None:
    plan = plan_of(tree_batch(), 16)
    assert [(g.level, g.prefix_tokens, g.num_members, g.saved_tokens) for g in plan.groups] == [
        (0, 80, 3, 160),
        (0, 48, 2, 48),
    ]


def test_levels_show_groups_inside_the_groups_that_enclose_them() -> None:
    plan = plan_of(tree_batch(), 16, levels=True)
    assert [(g.level, g.prefix_tokens, g.num_members, g.saved_tokens) for g in plan.groups] == [
        (0, 16, 5, 64),
        (1, 80, 3, 128),
        (1, 48, 2, 32),
    ]
    top = plan_of(tree_batch(), 16, levels=True, top=1).groups
    assert [(g.level, g.prefix_tokens) for g in top] == [(0, 16), (1, 80)]


def test_a_preview_begins_where_a_group_departs_from_the_others() -> None:
    def decode(tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    texts = ["You are a bot. First\n document 1", "You are a bot. Second\x1b[2J document 2"]
    prompts = [list(map(ord, text)) for text in texts for _ in range(2)]
    plan = plan_of(prompts, 30, decode=decode)
    assert sorted(g.preview for g in plan.groups) == ["…First document", "…Second [2J docu"]
    alone = plan_of([list(map(ord, "x" * 100))] * 2, 30, decode=decode)
    assert alone.groups[0].preview == "x" * 59 + "…"


def test_the_json_holds_every_figure() -> None:
    requests = [TokenizedRequest(array("I", [7] * 40), b"", limit) for limit in (10, None, 20)]
    plan = make_plan(requests, 16, num_kv_blocks=8, num_left_out=3)
    assert json.loads(plan.to_json()) == {
        "num_requests": 3,
        "num_left_out": 3,
        "prompt_tokens": 120,
        "max_output_tokens": 30,
        "block_size": 16,
        "optimal_saved_tokens": 64,
        "optimal_saved_ratio": pytest.approx(64 / 120),
        "first_come": {
            "num_kv_blocks": 8,
            "saved_tokens": 64,
            "saved_ratio": pytest.approx(64 / 120),
            "num_oversized": 0,
        },
        "num_duplicates": 2,
        "num_groups": 1,
        "levels": False,
        "num_unread": 0,
        "is_estimate": False,
        "ratio_error": None,
        "num_sampled": 0,
        "verdict": None,
        "verdict_reason": "",
        "groups": [
            {
                "level": 0,
                "prefix_tokens": 32,
                "num_members": 3,
                "saved_tokens": 64,
                "preview": " ".join(["7"] * 32)[:59] + "…",
            }
        ],
    }


def test_namespaces_share_nothing_and_are_no_duplicates() -> None:
    requests = [TokenizedRequest(array("I", [7] * 40), name, None) for name in (b"", b"a", b"b")]
    plan = make_plan(requests, 16, num_kv_blocks=100)
    assert plan.first_come is not None
    assert (plan.optimal_saved_tokens, plan.first_come.saved_tokens) == (0, 0)
    assert (plan.num_duplicates, plan.num_groups) == (0, 0)


def test_prompts_shorter_than_one_block_share_nothing() -> None:
    plan = plan_of([[1, 2, 3]] * 5, 16, num_kv_blocks=10)
    assert (plan.optimal_saved_tokens, plan.num_duplicates, plan.groups) == (0, 4, ())


def test_prompts_nested_thousands_of_levels_deep() -> None:
    plan = plan_of([[7] * length for length in range(1, 1500)], 1, levels=True, top=2)
    assert plan.optimal_saved_tokens == sum(range(1499))
    assert [group.level for group in plan.groups] == [0, 1]


@pytest.mark.parametrize(("options", "message"), [
    ({"block_size": 0}, "block_size must be at least 1 token, got 0"),
    ({"block_size": 16, "num_kv_blocks": 0}, "num_kv_blocks must be at least 1 block, got 0"),
    ({"block_size": 16, "top": -1}, "top must be at least 0 groups, got -1"),
])  # fmt: skip
def test_impossible_figures_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan([], **options)  # type: ignore[arg-type]
