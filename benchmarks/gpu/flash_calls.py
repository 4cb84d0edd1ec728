# SPDX-License-Identifier: Apache-2.0
"""FlashAttention as it can be had, behind one call; and the rival that reads a prefix by a second such call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from vllm_batchllm.attention.launch import LayerInputs
from vllm_batchllm.attention.reference import attend, gather_kv


class FlashCall(Protocol):
    """Attention of each row over its own block table, into ``out``; returns the natural log-sum-exp (heads, tokens)."""

    def __call__(
        self, layer: LayerInputs, table: torch.Tensor, lens: torch.Tensor, longest: int, out: torch.Tensor,
        *, causal: bool = True, query_start: torch.Tensor | None = None, max_query_len: int = 1,
    ) -> torch.Tensor: ...  # fmt: skip


def find_flash(*, dry: bool) -> tuple[str, FlashCall | None]:
    """The FlashAttention at hand and its name: vLLM's, the flash-attn package's, or none."""
    if dry:
        return "torch, in its place", in_torch
    try:
        from vllm.v1.attention.backends.fa_utils import (
            flash_attn_varlen_func,
            get_flash_attn_version,
        )

        version = get_flash_attn_version()
        return f"vLLM's FlashAttention {version}", paged_call(
            flash_attn_varlen_func, fa_version=version
        )
    except ImportError:
        pass
    try:
        from flash_attn import flash_attn_varlen_func

        return "flash-attn", packaged_call(flash_attn_varlen_func)
    except ImportError:
        return "none: our own kernel, nothing shared", None


def paged_call(function: Any, **fixed: Any) -> FlashCall:
    """vLLM's interface."""

    def call(
        layer: LayerInputs, table: torch.Tensor, lens: torch.Tensor, longest: int, out: torch.Tensor,
        *, causal: bool = True, query_start: torch.Tensor | None = None, max_query_len: int = 1,
    ) -> torch.Tensor:  # fmt: skip
        _, lse = function(
            q=layer.q, k=layer.keys, v=layer.values, out=out, max_seqlen_q=max_query_len, seqused_k=lens,
            cu_seqlens_q=layer.query_start if query_start is None else query_start, max_seqlen_k=longest,
            softmax_scale=layer.softmax_scale, causal=causal, block_table=table, return_softmax_lse=True, **fixed,
        )  # fmt: skip
        return lse

    return call


def packaged_call(function: Any) -> FlashCall:
    """The flash-attn package's: lengths of KV are cumulative, and it makes its own output."""

    def call(
        layer: LayerInputs, table: torch.Tensor, lens: torch.Tensor, longest: int, out: torch.Tensor,
        *, causal: bool = True, query_start: torch.Tensor | None = None, max_query_len: int = 1,
    ) -> torch.Tensor:  # fmt: skip
        kv_start = torch.nn.functional.pad(lens.cumsum(0, dtype=torch.int32), (1, 0))
        made, lse, _ = function(
            layer.q, layer.keys, layer.values, layer.query_start if query_start is None else query_start, kv_start,
            max_query_len, longest, softmax_scale=layer.softmax_scale, causal=causal, block_table=table,
            return_attn_probs=True,
        )  # fmt: skip
        out.copy_(made)
        return lse

    return call


def in_torch(
    layer: LayerInputs, table: torch.Tensor, lens: torch.Tensor, longest: int, out: torch.Tensor,
    *, causal: bool = True, query_start: torch.Tensor | None = None, max_query_len: int = 1,
) -> torch.Tensor:  # fmt: skip
    """The same in torch, for dry runs."""
    starts = (layer.query_start if query_start is None else query_start).tolist()
    lse = torch.zeros(layer.q.shape[1], layer.q.shape[0])
    for row, length in enumerate(lens.tolist()[: len(starts) - 1]):
        first, end = starts[row], starts[row + 1]
        visible = torch.arange(length - (end - first), length) + 1 if causal else None
        k, v = (
            gather_kv(x.transpose(1, 2), table[row])[:, :length] for x in (layer.keys, layer.values)
        )
        part, part_lse = attend(
            layer.q[first:end].unflatten(1, (len(k), -1)), k, v, layer.softmax_scale, visible
        )
        out[first:end], lse[:, first:end] = part.flatten(1, 2), part_lse.flatten(1).T
    return lse


def merge_states(
    out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor
) -> None:
    """``more`` into ``out``, by vLLM's kernel where there is one."""
    if out.is_cuda:
        try:
            from vllm.v1.attention.ops.merge_attn_states import merge_attn_states

            merge_attn_states(out, more, more_lse, out.clone(), lse)
            return
        except ImportError:
            pass
    weight = torch.sigmoid(more_lse - lse).T[..., None]
    out.copy_((out * (1 - weight) + more * weight).to(out.dtype))


def rival(
    layer: LayerInputs,
    flash: FlashCall | None,
    degree: int,
    prefix: int,
    own: int,
    lens: torch.Tensor,
    out: torch.Tensor,
) -> Callable[[], None] | None:
    """Prefix by one FlashAttention call over groups of ``degree`` equal rows, own KV by another, and a merge into ``out``.

    None where there is no FlashAttention, or nothing is shared.
    """
    if flash is None or degree == 1:
        return None
    block_size, device = layer.keys.shape[1], layer.q.device
    shared = prefix // block_size
    heads = layer.block_table[::degree, :shared].contiguous()
    starts = torch.arange(0, len(layer.q) + 1, degree, dtype=torch.int32, device=device)
    prefix_lens = torch.full((len(heads),), shared * block_size, dtype=torch.int32, device=device)
    own_table = layer.block_table[:, shared:].contiguous()
    own_lens = lens - shared * block_size
    more = torch.empty_like(layer.q)

    def call() -> None:
        lse = flash(layer, own_table, own_lens, prefix % block_size + own, out)
        more_lse = flash(
            layer, heads, prefix_lens, shared * block_size, more,
            causal=False, query_start=starts, max_query_len=degree,
        )  # fmt: skip
        merge_states(out, lse, more, more_lse)

    return call
