# SPDX-License-Identifier: Apache-2.0
"""Ends a request after a given number of tokens without telling the engine beforehand.

A workload with unknown output lengths must look to the scheduler like real text: `max_tokens`
is large and a stop token comes when it comes. With random weights it would never come, or
anywhere, so this logits processor forces it at the position the workload asks for, and bans it
before. It is installed in the engines of all arms alike.

vLLM loads this module by name, so it may import vLLM and torch at the top.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

from vllm_batchllm.bench.sampling import OUTPUT_LEN_KEY, STOP_TOKEN_ID

_Target = tuple[int, list[int]]


class ForcedStopProcessor(LogitsProcessor):
    """Forces `STOP_TOKEN_ID` as the n-th output token, n from `SamplingParams.extra_args`."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._targets: dict[int, _Target] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a target length that is not a positive integer.

        Raises:
            ValueError: names the value.
        """
        target = _target_len(sampling_params)
        if target is not None and (not isinstance(target, int) or target < 1):
            raise ValueError(f"{OUTPUT_LEN_KEY} must be an integer of at least 1, not {target!r}")

    def is_argmax_invariant(self) -> bool:
        """False: greedy decoding must see the forced token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow requests as they enter, leave and move in the batch."""
        process_dict_updates(self._targets, batch_update, _new_target)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Ban the stop token in rows before their last token, force it in the last."""
        if not self._targets:
            return logits
        early: list[int] = []
        last: list[int] = []
        for row, (target, output_ids) in self._targets.items():
            (last if len(output_ids) >= target - 1 else early).append(row)
        if early:
            logits[early, STOP_TOKEN_ID] = float("-inf")
        if last:
            logits[last] = float("-inf")
            logits[last, STOP_TOKEN_ID] = 0.0
        return logits


def _target_len(params: SamplingParams) -> Any:
    return (params.extra_args or {}).get(OUTPUT_LEN_KEY)


def _new_target(
    params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
) -> _Target | None:
    target = _target_len(params)
    return None if target is None else (target, output_ids)
