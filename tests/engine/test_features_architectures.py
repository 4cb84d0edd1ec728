# SPDX-License-Identifier: Apache-2.0
"""Other kinds of models than plain decoders: answers are stock's, and no more is computed."""

from __future__ import annotations

import pytest
import small_models
from tiny_engines import (
    ENGINE,
    admissions,
    check_clean,
    documents,
    generate,
    num_changes,
    num_computed,
    pair,
    scheduler_of,
    started,
    tokens,
)
from vllm import LLM as StockLLM
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

from vllm_batchllm import LLM


def check_shares_more_than_stock(model: str, **arguments: object) -> list[type]:
    """Both engines on documents and questions; the kinds of KV cache groups that ours has."""
    prompts = documents()
    with pair(model, **arguments) as engines:
        expected = generate(engines.stock, prompts)
        with admissions(engines.ours) as admitted:
            outputs = generate(engines.ours, prompts)
        check_clean(engines.ours)
        groups = scheduler_of(engines.ours).kv_cache_config.kv_cache_groups
    assert tokens(outputs) == tokens(expected)
    assert len({tuple(answer) for (answer,) in tokens(outputs)}) > len(prompts) // 2
    firsts = [tuple(prompts[n][:32]) for n in admitted]
    assert num_changes(firsts) == len(set(firsts)) - 1
    assert num_computed(outputs) < 0.8 * num_computed(expected)
    return [type(group.kv_cache_spec) for group in groups]


def test_a_mixture_of_experts_answers_as_stock(tmp_path) -> None:
    model = small_models.saved(small_models.mixture_of_experts, tmp_path)
    assert check_shares_more_than_stock(model) == [FullAttentionSpec]


def test_a_gated_delta_hybrid_shares_states_and_blocks(tmp_path) -> None:
    model = small_models.saved(small_models.gated_delta_hybrid, tmp_path)
    # vLLM's kernel for these layers takes bfloat16 only, on a CPU.
    kinds = check_shares_more_than_stock(model, dtype="bfloat16", num_gpu_blocks_override=34)
    assert sorted(kind.__name__ for kind in kinds) == [
        FullAttentionSpec.__name__,
        *[MambaSpec.__name__] * 3,
    ]


def test_latent_attention_works_where_vllm_caches_its_prefixes_and_is_refused_elsewhere(
    tmp_path,
) -> None:
    model = small_models.saved(small_models.latent_attention, tmp_path)
    arguments = {"num_gpu_blocks_override": 56}
    with started(StockLLM, model, **arguments) as stock:
        caches = scheduler_of(stock).cache_config.enable_prefix_caching
    if caches:  # by the platform: on CPUs, those with AMX
        check_shares_more_than_stock(model, **arguments)
        return
    with pytest.raises(ValueError, match="needs prefix caching"):
        LLM(model, **ENGINE | arguments)
