# SPDX-License-Identifier: Apache-2.0
"""Other kinds of models than plain decoders: answers are stock's, and less is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models
import torch
from own_process import run_alone
from tiny_engines import ENGINE, scheduler_of, started
from vllm import LLM as StockLLM

from vllm_batchllm import LLM


def test_a_mixture_of_experts_answers_as_stock(tmp_path: Path) -> None:
    model = small_models.saved(small_models.mixture_of_experts, tmp_path / "model")
    assert run_alone("pair_run.py", model, {}, tmp_path) == ["FullAttentionSpec"]


def test_a_gated_delta_hybrid_shares_states_and_blocks(tmp_path: Path) -> None:
    model = small_models.saved(small_models.gated_delta_hybrid, tmp_path / "model")
    # vLLM's kernel for these layers takes bfloat16 only, on a CPU.
    arguments = {"dtype": "bfloat16", "num_gpu_blocks_override": 34}
    kinds = run_alone("pair_run.py", model, arguments, tmp_path)
    assert kinds == ["FullAttentionSpec", *["MambaSpec"] * 3]


def test_latent_attention_works_where_vllm_caches_its_prefixes_and_is_refused_elsewhere(
    tmp_path: Path,
) -> None:
    model = small_models.saved(small_models.latent_attention, tmp_path / "model")
    # With AMX vLLM takes its kernels for MLA, which know no float32.
    dtype = "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"
    # vLLM may take blocks of 16 tokens for it, whatever is asked for: twice as many hold what a request needs.
    arguments = {"dtype": dtype, "num_gpu_blocks_override": 2 * ENGINE["num_gpu_blocks_override"]}
    with started(StockLLM, model, **arguments) as stock:
        caches = scheduler_of(stock).cache_config.enable_prefix_caching
    if caches:  # by the platform: on CPUs, those with AMX
        # vLLM's kernels for AMX answer 30 of 30 prompts otherwise when they come in another order: weights are random.
        run_alone("pair_run.py", model, arguments | {"repeats": dtype == "float32"}, tmp_path)
        return
    with pytest.raises(ValueError, match="needs prefix caching"):
        LLM(model, **ENGINE | arguments)


def test_an_encoder_decoder_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    """Whatever is asked for: vLLM only warns that it does not support prefix caching for them."""
    model = small_models.saved(small_models.encoder_decoder, tmp_path / "model")
    for asked in ({}, {"enable_prefix_caching": True}):
        with pytest.raises(
            ValueError, match=r"does not serve encoder-decoders .*--scheduler stock"
        ):
            LLM(model, **ENGINE | {"max_model_len": 64} | asked)
