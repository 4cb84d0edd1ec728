# SPDX-License-Identifier: Apache-2.0
"""Models that are not plain decoders of text: pooled outputs, and layers that forget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_engines import (
    TINY,
    admissions,
    check_clean,
    check_shares_more_than_stock,
    documents,
    num_changes,
    pair,
    scheduler_of,
)
from vllm.config import PoolerConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER
from vllm_batchllm.plugin.registration import register


def test_embeddings_are_stocks_and_shared_prompts_are_computed_once(tiny_model, smollm2) -> None:
    prompts = documents()
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    # vLLM hands over no more than two requests for every one that may run.
    pooling = {"runner": "pooling", "convert": "embed", "max_num_seqs": len(prompts) // 2}
    tokenizer = {"tokenizer": smollm2, "skip_tokenizer_init": False}  # vLLM insists on one
    with pair(tiny_model, **pooling, **tokenizer) as engines:
        expected, outputs = (llm.embed(inputs, use_tqdm=False) for llm in engines)
        with admissions(engines.ours) as admitted:
            again = engines.ours.embed(inputs[::-1], use_tqdm=False)
        check_clean(engines.ours)
        counters = scheduler_of(engines.ours).batchllm_snapshot()
    of_stock, of_ours, of_again = (
        torch.tensor([each.outputs.embedding for each in group])
        for group in (expected, outputs, again[::-1])
    )
    assert of_ours.shape == (len(prompts), TINY.hidden_size)
    torch.testing.assert_close(of_ours, of_stock, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(of_again, of_stock, atol=1e-5, rtol=1e-4)
    firsts = [tuple(prompts[::-1][n][:32]) for n in admitted]
    assert num_changes(firsts) == len(set(firsts)) - 1
    computed = [
        sum(len(e.prompt_token_ids) - e.num_cached_tokens for e in g) for g in (expected, outputs)
    ]
    assert computed[1] < 0.8 * computed[0]
    assert counters["computed_prompt_tokens"] < counters["prompt_tokens"]


def test_a_pooling_model_that_cannot_cache_prefixes_is_refused_by_name(tiny_model) -> None:
    register()
    arguments = EngineArgs(
        model=tiny_model,
        skip_tokenizer_init=True,
        runner="pooling",
        convert="embed",
        pooler_config=PoolerConfig(seq_pooling_type="MEAN"),
        scheduler_cls=BATCHLLM_SCHEDULER,
    )
    with pytest.raises(ValueError, match=r"needs prefix caching.*most pooling models"):
        arguments.create_engine_config()


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Gemma 3 with random weights: five layers that see 64 tokens, one that sees all."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder: Path = tmp_path_factory.mktemp("gemma3")
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=TINY.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        sliding_window=64,
        query_pre_attn_scalar=32,
        initializer_range=0.3,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )
    Gemma3ForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return str(folder)


def test_a_sliding_window_hybrid_shares_what_its_windows_allow(gemma3) -> None:
    kinds, report = check_shares_more_than_stock(gemma3, num_gpu_blocks_override=130)
    assert set(kinds) == {FullAttentionSpec, SlidingWindowSpec}
    assert report.num_needed_lost == 0
