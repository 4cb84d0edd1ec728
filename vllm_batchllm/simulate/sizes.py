# SPDX-License-Identifier: Apache-2.0
"""How large a fake engine is, whatever arm it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllm_batchllm.errors import UsageError
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.workloads.batch import Batch


@dataclass(frozen=True, slots=True)
class ArmSizes:
    """What differs between the engines of two arms. num_blocks: KV blocks that requests can hold."""

    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """A fake engine, whatever the arm.

    batchllm_max_num_seqs: requests at once with our scheduler, where its default is larger.
    num_blocks: KV blocks that requests can hold. max_waiting: requests that wait at most at any
    time; None queues the batch before the first step. platform: on which our scheduler decides.
    is_async: whether a step is put together while the one before it runs. tuned: what `performance_mode=throughput`
    makes of it: bounds of a step doubled where the user has set none, less memory for KV; None for no change.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    batchllm_max_num_seqs: int
    max_num_batched_tokens: int
    max_waiting: int | None = None
    prefix_caching: bool = True
    platform: str = "cuda"
    is_async: bool = False
    tuned: ArmSizes | None = None

    def widest(self) -> EngineSizes:
        """With the most that any arm has of everything, for what holds whatever the arm."""
        tuned = self.tuned or ArmSizes(0, 0, 0)
        return replace(
            self,
            num_blocks=max(self.num_blocks, tuned.num_blocks),
            batchllm_max_num_seqs=max(self.batchllm_max_num_seqs, tuned.max_num_seqs),
            max_num_batched_tokens=max(self.max_num_batched_tokens, tuned.max_num_batched_tokens),
        )

    def of(self, arm: Arm) -> ArmSizes:
        """The sizes of the engine of `arm`."""
        if arm.is_tuned and self.tuned is not None:
            return self.tuned
        raised = arm.is_ours and arm.raises_seqs
        seqs = self.batchllm_max_num_seqs if raised else self.max_num_seqs
        return ArmSizes(self.num_blocks, seqs, self.max_num_batched_tokens)


def check_fits(batch: Batch, sizes: EngineSizes) -> None:
    """Raise UsageError if a request of `batch` is larger than the KV cache."""
    longest = max(len(p) + n for p, n in zip(batch.prompts, batch.output_lens, strict=True))
    needed = -(-longest // sizes.block_size)
    if needed > sizes.num_blocks:
        raise UsageError(
            f"the largest request of {batch.name!r} has {longest} tokens, which is {needed} KV "
            f"blocks of {sizes.block_size}; there are {sizes.num_blocks}"
        )
