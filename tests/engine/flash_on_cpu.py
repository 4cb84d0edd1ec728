# SPDX-License-Identifier: Apache-2.0
"""FlashAttention's two calls in torch, so that the backend for CUDA runs in an engine on a CPU.

Only the call over KV and the store into the cache are stood in for; builder, metadata, planning and our kernels are those
of a GPU. For a process of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_batchllm.attention.reference import attend, gather_kv


def varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, cu_seqlens_q: torch.Tensor,
    seqused_k: torch.Tensor, max_seqlen_k: int, max_seqlen_q: int, softmax_scale: float, block_table: torch.Tensor,
    causal: bool = True, return_softmax_lse: bool = False, **_: Any,
) -> Any:  # fmt: skip
    """What ``flash_attn_varlen_func`` answers; where it answers nothing stands NaN."""
    assert causal is True
    num_kv_heads = k.shape[2]
    lse = torch.full((q.shape[1], q.shape[0]), float("nan"))
    for row in range(seqused_k.shape[0]):
        first, end = cu_seqlens_q[row : row + 2].tolist()
        length = int(seqused_k[row])
        if first == end:
            continue
        assert end - first <= min(length, max_seqlen_q) and length <= max_seqlen_k
        visible = torch.arange(length - (end - first), length) + 1
        blocks = block_table[row, : -(-length // k.shape[1])]
        keys, values = (gather_kv(x.transpose(1, 2), blocks)[:, :length] for x in (k, v))
        mine = q[first:end].unflatten(1, (num_kv_heads, -1))
        part, part_lse = attend(mine, keys, values, softmax_scale, visible)
        out[first:end] = part.flatten(1, 2)
        lse[:, first:end] = part_lse.flatten(1).T
    return (out, lse) if return_softmax_lse else out


def store(
    key: torch.Tensor, value: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor,
    slot_mapping: torch.Tensor, *_: Any,
) -> None:  # fmt: skip
    """What ``reshape_and_cache_flash`` does."""
    block_size = k_cache.shape[1]
    real = slot_mapping >= 0
    slots = slot_mapping[real]
    num_tokens = slot_mapping.shape[0]
    k_cache[slots // block_size, slots % block_size] = key[:num_tokens][real]
    v_cache[slots // block_size, slots % block_size] = value[:num_tokens][real]


def install(backend: str) -> None:
    """Make ``backend`` the one that engines on the CPU get."""
    from vllm.v1.attention.backends import fa_utils, flash_attn, triton_attn
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    flash_attn.flash_attn_varlen_func, flash_attn.reshape_and_cache_flash = varlen, store
    triton_attn.triton_reshape_and_cache_flash = store
    for module in (flash_attn, fa_utils):
        module.get_flash_attn_version = lambda *args, **kwargs: 2
    flash_attn.flash_attn_supports_quant_query_input = lambda *args, **kwargs: False
    flash_attn.flash_attn_supports_sinks = lambda *args, **kwargs: False
    register_backend(AttentionBackendEnum.CPU_ATTN, backend)
