# SPDX-License-Identifier: Apache-2.0
"""From what a user asks for to engine sizes and a cost model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import CPU, find_device
from vllm_batchllm.hardware.memory import num_kv_blocks
from vllm_batchllm.hardware.models import find_model
from vllm_batchllm.plugin import engine_sizes
from vllm_batchllm.simulate.calibration import Calibration
from vllm_batchllm.simulate.cost_model import (
    PUBLISHED,
    Constants,
    CostModel,
    Measured,
    Roofline,
)
from vllm_batchllm.simulate.graphs import Graphs, capture_sizes
from vllm_batchllm.simulate.shared_kv import KVReading
from vllm_batchllm.simulate.sizes import ArmSizes, EngineSizes
from vllm_batchllm.workloads.batch import Batch, kv_blocks_for

MAX_GRAPH_TOKENS = 512
"""Largest decode step that vLLM captures as a graph, which bounds our `max_num_seqs`."""
_CPU_SIZES = (256, 2048, 32)
_GPU_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """What a user may say of the engine; None leaves it to the device, as vLLM would."""

    device: str = "A100-80GB"
    model: str = "Llama-3.1-8B"
    tensor_parallel: int = 1
    weight_bits: float | None = None
    memory_utilization: float = 0.9
    block_size: int | None = None
    kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_waiting: int | None = None
    prefix_caching: bool = True
    kv_reading: KVReading = "apart"
    constants: Constants = PUBLISHED


@dataclass(frozen=True, slots=True)
class Setup:
    """A fake engine for one batch, and what its steps cost."""

    sizes: EngineSizes
    costs: CostModel
    device: str
    model: str
    num_devices: int

    def describe(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {
            "device": self.device,
            "model": self.model,
            "num_devices": self.num_devices,
            "costs": asdict(self.costs),  # type: ignore[call-overload]
            "kv_blocks": self.sizes.num_blocks,
            **asdict(self.sizes),
        }


def make_setup(batch: Batch, options: SetupOptions) -> Setup:
    """Sizes and costs for `batch`.

    Raises:
        UsageError: unknown device or model, a model that does not fit, figures out of range.
    """
    _check(options)
    return _cpu(batch, options) if options.device.lower() == CPU else _gpu(options)


def check_names(options: SetupOptions) -> None:
    """Raise UsageError for an unknown device or model, before a batch is read."""
    if options.device.lower() != CPU:
        find_device(options.device)
        find_model(options.model, options.weight_bits)


def _check(options: SetupOptions) -> None:
    for name in ("block_size", "kv_blocks", "max_num_seqs", "max_num_batched_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    if options.max_waiting is not None and options.max_waiting < 1:
        raise UsageError(f"max_waiting must be at least 1, not {options.max_waiting}")


def _gpu(options: SetupOptions) -> Setup:
    device = find_device(options.device)
    model = find_model(options.model, options.weight_bits)
    tokens = options.max_num_batched_tokens or device.max_num_batched_tokens
    seqs = min(options.max_num_seqs or device.max_num_seqs, tokens)
    ours = seqs if options.max_num_seqs else _raised(device.max_num_seqs, tokens)
    costs = Roofline(
        device,
        model,
        options.constants,
        options.tensor_parallel,
        options.kv_reading,
        Graphs(capture_sizes(seqs, MAX_GRAPH_TOKENS)),
    )
    block_size = options.block_size or _GPU_BLOCK_SIZE

    def blocks(tokens: int, seqs: int) -> int:
        return options.kv_blocks or num_kv_blocks(
            device,
            model,
            block_size=block_size,
            max_num_batched_tokens=tokens,
            max_num_seqs=seqs,
            tensor_parallel=options.tensor_parallel,
            memory_utilization=options.memory_utilization,
        )

    more_tokens = tokens if options.max_num_batched_tokens else 2 * tokens
    more_seqs = seqs if options.max_num_seqs else 2 * seqs
    sizes = EngineSizes(
        blocks(tokens, max(seqs, ours)),
        block_size,
        seqs,
        ours,
        tokens,
        options.max_waiting,
        options.prefix_caching,
        is_async=True,
        tuned=ArmSizes(blocks(more_tokens, more_seqs), more_seqs, more_tokens),
    )
    return Setup(sizes, costs, device.name, model.name, options.tensor_parallel)


def _raised(stock_seqs: int, tokens: int) -> int:
    """`max_num_seqs` as our plugin sets it on a GPU where the user has not."""
    work = engine_sizes.Workload()
    device = engine_sizes.Device("gpu", MAX_GRAPH_TOKENS, stock_seqs)
    ceiling = engine_sizes.seqs_ceiling(device, work)
    stock = engine_sizes.EngineSizes(min(stock_seqs, tokens), tokens)
    return engine_sizes.raised_seqs(stock, ceiling, work)


def _cpu(batch: Batch, options: SetupOptions) -> Setup:
    if options.tensor_parallel != 1:
        raise UsageError("the CPU is one device; leave --tensor-parallel out")
    calibration = Calibration.load()
    seqs, tokens, block_size = _CPU_SIZES
    seqs = options.max_num_seqs or seqs
    block_size = options.block_size or block_size
    sizes = EngineSizes(
        num_blocks=(options.kv_blocks or kv_blocks_for(batch, block_size)) - 1,
        block_size=block_size,
        max_num_seqs=seqs,
        batchllm_max_num_seqs=seqs,
        max_num_batched_tokens=options.max_num_batched_tokens or tokens,
        max_waiting=options.max_waiting,
        prefix_caching=options.prefix_caching,
        platform="cpu",
    )
    if options.max_num_seqs is None or options.max_num_batched_tokens is None:
        more_seqs = seqs if options.max_num_seqs else 2 * seqs
        more_tokens = sizes.max_num_batched_tokens * (1 if options.max_num_batched_tokens else 2)
        sizes = replace(sizes, tuned=ArmSizes(sizes.num_blocks, more_seqs, more_tokens))
    return Setup(sizes, Measured(calibration.costs), CPU, calibration.model, 1)


ATTENTION_BOUNDS: dict[str, KVReading] = {
    " + shared attention": "once",
    ", KV from cache": "cached",
    " + shared attention, slow": "once-slow",
}
"""What is added to the name of an arm, and how KV is read then. The first against the arm itself is the upper bound of what
shared attention brings, the last against the second the lower one."""


def with_reading(setup: Setup, reading: KVReading) -> Setup:
    """The same with another way of reading shared KV.

    Raises:
        UsageError: the costs are measured ones, which no other kernel can be read off.
    """
    if not isinstance(setup.costs, Roofline):
        raise UsageError("prefix-shared attention cannot be simulated with measured costs")
    return replace(setup, costs=replace(setup.costs, kv_reading=reading))
