# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters and cache salts: requests share a prefix only where both are the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_engines import (
    TINY,
    Pair,
    admissions,
    check_clean,
    documents,
    generate,
    greedy,
    num_changes,
    num_computed,
    pair,
    tokens,
)
from vllm.lora.request import LoRARequest

from vllm_batchllm.bench.random_model import RandomModelSpec

RANK = 8


def write_adapter(folder: Path, seed: int, model: RandomModelSpec = TINY) -> str:
    """A LoRA adapter of random weights on the query and value projections of a model."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    head_dim = model.hidden_size // model.num_heads
    tensors = {}
    for layer in range(model.num_layers):
        for name, heads in (("q_proj", model.num_heads), ("v_proj", model.num_kv_heads)):
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            down = torch.randn(RANK, model.hidden_size, generator=generator)
            up = torch.randn(heads * head_dim, RANK, generator=generator)
            tensors[f"{module}.lora_A.weight"] = down * 0.3
            tensors[f"{module}.lora_B.weight"] = up * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest]:
    """Three that differ."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        LoRARequest(f"adapter-{number}", number, write_adapter(root / str(number), number))
        for number in (1, 2, 3)
    ]


@pytest.fixture(scope="module")
def engines(tiny_model: str) -> Iterator[Pair]:
    """Both engines with LoRA, and with room for two adapters at a time."""
    with pair(tiny_model, enable_lora=True, max_loras=2, max_lora_rank=RANK) as both:
        yield both


def test_adapters_never_share_and_answers_are_stocks(engines, adapters) -> None:
    """Every document is asked under every adapter: as many groups as there are pairs of both."""
    prompts = documents(num_documents=3, members=9, seed=5)
    used = [adapters[number * 7 // 3 % 3] for number in range(len(prompts))]
    expected = generate(engines.stock, prompts, lora_request=used)
    with admissions(engines.ours) as admitted:
        outputs = generate(engines.ours, prompts, lora_request=used)
    assert tokens(outputs) == tokens(expected)
    groups = [(prompts[n][0], used[n].lora_name) for n in admitted]
    assert sorted(admitted) == list(range(len(prompts)))
    assert num_changes(groups) == len(set(groups)) - 1, "a group was left before it was done"
    report = engines.ours.report()
    assert report.reuse_efficiency == pytest.approx(1.0)
    assert num_computed(outputs) < num_computed(expected)
    check_clean(engines.ours)


def test_one_prompt_under_every_adapter_is_no_hit_and_other_answers(engines, adapters) -> None:
    """The same prompt, without and with adapters, shares nothing; asked again, all find theirs.

    The answer without an adapter is not looked at: see the next test.
    """
    (prompt,) = documents(num_documents=1, members=1)
    asked = [None, *adapters]
    for llm in engines:
        outputs = generate(llm, [prompt] * 4, lora_request=asked)
        assert [o.num_cached_tokens for o in outputs] == [0] * 4
        assert len({tuple(o.outputs[0].token_ids) for o in outputs[1:]}) == 3
    report = engines.ours.report()
    assert (report.saved_ratio, report.optimal_saved_ratio, report.num_duplicates) == (0, 0, 0)
    again = engines.ours.generate(
        [{"prompt_token_ids": prompt}] * 2, greedy(), use_tqdm=False, lora_request=adapters[:2]
    )
    assert [o.num_cached_tokens for o in again] == [(len(prompt) - 1) // 32 * 32] * 2


def test_without_an_adapter_beside_one_with_stock_and_ours_make_the_same_mistake(
    engines, adapters
) -> None:
    """On CPUs vLLM computes a request without an adapter, beside one with, with whatever adapter is
    in the last of its slots: "no adapter" is index -1 there. Stock does it all alone."""
    (prompt,) = documents(num_documents=1, members=1)

    def answers(llm: Any, *used: LoRARequest | None) -> list[list[int]]:
        outputs = generate(llm, [prompt] * len(used), lora_request=list(used))
        return [answer for (answer,) in tokens(outputs)]

    for llm in engines:
        (alone,) = answers(llm, None)
        first, last = answers(llm, adapters[0])[0], answers(llm, adapters[1])[0]  # both slots taken
        assert len({tuple(each) for each in (alone, first, last)}) == 3
        beside = answers(llm, None, adapters[0])
        assert beside[0] in (first, last), "vLLM is mended: compare all answers above"
        assert beside[1] == first


def salted(prompts: list[str], salts: list[str | None]) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt} | ({"cache_salt": salt} if salt is not None else {})
        for prompt, salt in zip(prompts, salts, strict=True)
    ]


def test_salts_never_share_and_each_salt_shares_with_itself(stock, ours) -> None:
    """Two tenants and one without a salt ask the same about the same documents."""
    documents_of_all = [f"{name} " * 70 for name in ("red", "green", "blue")]
    prompts = [
        f"{document} Question {number}:" for number in range(2) for document in documents_of_all
    ]
    inputs = [
        each for salt in ("tenant-a", "tenant-b", None) for each in salted(prompts, [salt] * 6)
    ]
    params = greedy(3)
    expected = stock.generate(inputs, params, use_tqdm=False)
    with admissions(ours) as admitted:
        outputs = ours.generate(inputs, params, use_tqdm=False)
    assert tokens(outputs) == tokens(expected)
    groups = [(inputs[n].get("cache_salt"), n % 3) for n in admitted]
    assert num_changes(groups) == 9 - 1, "one group per document and salt, one after the other"
    hits = {n: outputs[n].num_cached_tokens for n in admitted}
    assert [hits[n] > 0 for n in admitted] == [False, True] * 9, "a block went to another salt"
    assert ours.report().saved_ratio == pytest.approx(ours.report().optimal_saved_ratio)
