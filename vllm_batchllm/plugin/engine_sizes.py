# SPDX-License-Identifier: Apache-2.0
"""The engine's sizes for a batch, where the user gave none: pure decisions, no vLLM.

vLLM's defaults suit a server: few requests at once, short steps. A batch is bounded by the memory
for KV, and by nothing that a user did not ask for. `engine_config` asks here and tells vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass

CPU_MAX_NUM_SEQS = 1024
"""Ceiling on the CPU: what vLLM takes on its largest devices. The input buffers and the sampler's
warm-up of this many requests cost little beside a model's weights, and no graphs bound the batch."""

CPU_BLOCK_SIZE = 32
"""The smallest block, tokens, for which vLLM's CPU attention has its fast kernels."""

CPU_STOCK_BLOCK_SIZE = 128
"""What vLLM takes on the CPU for a model that prescribes no block size."""


LARGE_GPU_BYTES = 60 * 2**30
"""On a smaller device a model leaves little for KV: activations and buffers of larger steps (of a gigabyte and
more) could keep an engine from starting that starts with vLLM's own sizes."""


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """The two bounds of a step.

    max_num_seqs: requests that run at once. max_num_batched_tokens: tokens of one step.
    """

    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class Device:
    """What the decisions need to know of a device.

    platform: "gpu" (CUDA and ROCm), "cpu", or any other name. max_graph_tokens: tokens of the
    largest decode step that vLLM captures as a graph; 0 without graphs. llm_max_num_seqs: vLLM's
    own default for its `LLM` class. memory_bytes: of the device.
    """

    platform: str
    max_graph_tokens: int
    llm_max_num_seqs: int
    memory_bytes: float = float("inf")

    @property
    def has_room(self) -> bool:
        """Whether larger steps cannot keep an engine from starting."""
        return self.platform != "gpu" or self.memory_bytes >= LARGE_GPU_BYTES


@dataclass(frozen=True, slots=True)
class Workload:
    """What the decisions need to know of the model and of what the user set.

    generates: the model generates text. has_state: it keeps a state per request beside KV blocks
    (Mamba), and vLLM refuses more requests than states. tokens_per_decode: of one request and
    step, 1 + draft tokens; None if unknown before the draft model is read. for_latency: the user
    chose vLLM's `interactivity` mode. max_num_active_seqs, max_num_scheduled_tokens: the user's
    bounds of these names, or None.
    """

    generates: bool = True
    has_state: bool = False
    tokens_per_decode: int | None = 1
    for_latency: bool = False
    max_num_active_seqs: int | None = None
    max_num_scheduled_tokens: int | None = None

    @property
    def is_batch(self) -> bool:
        """Whether larger steps can be of use at all."""
        return self.generates and not self.for_latency

    @property
    def may_run_more(self) -> bool:
        """Whether more requests at once can be of use, and are sure not to be refused."""
        return (
            self.is_batch
            and not self.has_state
            and self.tokens_per_decode is not None
            and self.max_num_active_seqs is None
        )


def seqs_ceiling(device: Device, work: Workload) -> int | None:
    """Requests at once up to which `max_num_seqs` is raised; None to leave it alone.

    On a GPU a decode step wider than the largest captured graph runs without one, so the ceiling is
    that graph's width in requests, unless vLLM's own default for the device is larger.
    """
    if not work.may_run_more:
        return None
    if device.platform == "gpu":
        graph_width = device.max_graph_tokens // (work.tokens_per_decode or 1)
        return max(graph_width, device.llm_max_num_seqs)
    if device.platform == "cpu":
        return max(CPU_MAX_NUM_SEQS, device.llm_max_num_seqs)
    return None


def raised_seqs(stock: EngineSizes, ceiling: int | None, work: Workload) -> int:
    """`max_num_seqs` for a batch: up to the ceiling, never below vLLM's value.

    Args:
        stock: with the number of tokens a step that the engine will have. A step must hold one
            decode of every request, so that is a bound as well.
    """
    if ceiling is None:
        return stock.max_num_seqs
    tokens = stock.max_num_batched_tokens
    if work.max_num_scheduled_tokens is not None:
        tokens = min(tokens, work.max_num_scheduled_tokens)
    return max(stock.max_num_seqs, min(ceiling, tokens // (work.tokens_per_decode or 1)))


def cpu_block_size(
    chosen: int, *, platform: str, by_user: bool, has_state: bool, uses_mla: bool
) -> int:
    """Tokens per KV block: smaller on the CPU, where vLLM's choice is its plain default.

    A prefix is shared in whole blocks, so half a block is lost per prefix on average: 64 tokens
    of 128. Models with a kernel of one block size (MLA, DeepSeek-V4) or with a state whose pages
    are aligned to blocks keep vLLM's choice.

    Args:
        chosen: vLLM's block size, or the user's if `by_user`.
    """
    is_plain_default = chosen == CPU_STOCK_BLOCK_SIZE and not by_user
    if platform == "cpu" and is_plain_default and not has_state and not uses_mla:
        return CPU_BLOCK_SIZE
    return chosen


def describe_change(name: str, before: int, after: int) -> str | None:
    """`name 256 -> 1024 (fix it with --name)`, or None where nothing changed."""
    if before == after:
        return None
    return f"{name} {before} -> {after} (fix it with --{name.replace('_', '-')})"
