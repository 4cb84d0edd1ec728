# SPDX-License-Identifier: Apache-2.0
"""What a step of the engine costs, in seconds.

`Roofline` computes it from data sheets: every part of a step takes as long as its operations or
its memory traffic, whichever is longer. Three constants are fitted on published runs; everything
else is a property of the device and of the model. `Measured` takes linear costs that a
calibration run on the real engine has found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Protocol, Self

from vllm_batchllm.errors import UsageError
from vllm_batchllm.hardware.devices import Device
from vllm_batchllm.hardware.models import ModelShape
from vllm_batchllm.simulate.graphs import Agreed, Graphs, Mode, agreed
from vllm_batchllm.simulate.shared_kv import KVReading, SharedWork, launches_s, read_as_tokens
from vllm_batchllm.simulate.step_costs import StepCosts


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step does.

    num_tokens: through the layers. num_requests: scheduled. num_sampled: that get a token.
    prefill_pairs: (query, key) pairs of requests with several tokens. prefill_kv_tokens: tokens
    of KV that those read. decode_kv_tokens: the same for requests with one token, each on its
    own. held_kv_tokens: distinct tokens in the blocks held by requests. shared: what a kernel that reads shared KV once
    would do (`shared_kv.py`); None where nobody asked.
    """

    num_tokens: int
    num_requests: int
    num_sampled: int
    prefill_pairs: int = 0
    prefill_kv_tokens: int = 0
    decode_kv_tokens: int = 0
    held_kv_tokens: int = 0
    shared: SharedWork | None = None

    @property
    def decode_kv_distinct(self) -> int:
        """Distinct tokens of KV that decodes read, at most: no more than are held."""
        return min(self.decode_kv_tokens, self.held_kv_tokens)


@dataclass(slots=True)
class StepTime:
    """Seconds of a step by part; the sum is what it takes."""

    linear_s: float = 0.0
    head_s: float = 0.0
    prefill_attention_s: float = 0.0
    decode_attention_s: float = 0.0
    communication_s: float = 0.0
    launch_s: float = 0.0
    step_s: float = 0.0
    requests_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All parts, one after the other."""
        return math.fsum(getattr(self, field.name) for field in fields(self))

    def divided(self, divisor: float) -> StepTime:
        """Every part through `divisor`."""
        return StepTime(*(getattr(self, field.name) / divisor for field in fields(self)))

    def add(self, other: StepTime) -> None:
        """Add the parts of another."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True, slots=True)
class Constants:
    """The fitted constants.

    efficiency: share of the data sheet's operations and bandwidth that kernels reach. step_s:
    fixed cost of a step. request_s: on the host, per scheduled request and step.
    """

    efficiency: float
    step_s: float
    request_s: float

    def __post_init__(self) -> None:
        if not 0 < self.efficiency <= 1:
            raise UsageError(f"the efficiency must be above 0 and at most 1: {self.efficiency}")
        for name in ("step_s", "request_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be 0 seconds or more, not {value}")


PUBLISHED = Constants(efficiency=0.451, step_s=0.0, request_s=2.34e-5)
"""Fitted by ``benchmarks/paper/validate.py`` on half of the published figures of vLLM 0.6.4."""


class CostModel(Protocol):
    """Seconds of a step."""

    def mode_of(self, work: StepWork) -> Mode | None:
        """Which graphs a step that does `work` can replay; None where graphs are not looked at."""

    def time_of(self, work: StepWork, together: Agreed | None = None) -> StepTime:
        """The parts of a step that does `work`. together: what ranks in lockstep have agreed on; None for an engine alone."""

    def agreed(self, works: Sequence[StepWork]) -> Agreed | None:
        """What ranks in lockstep that do `works` agree on; None where graphs are not looked at."""

    @property
    def reads_shared_kv_once(self) -> bool:
        """Whether `work` has to say what its decodes share."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """A model on `tensor_parallel` devices of one kind.

    kv_reading: how decodes read KV that several requests share (`shared_kv.py`). graphs: which steps are captured; None launches everything in no time.
    """

    device: Device
    model: ModelShape
    constants: Constants = PUBLISHED
    tensor_parallel: int = 1
    kv_reading: KVReading = "apart"
    graphs: Graphs | None = None

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1:
            raise UsageError(f"tensor parallelism must be at least 1, not {self.tensor_parallel}")
        if self.model.num_heads % self.tensor_parallel:
            raise UsageError(
                f"{self.model.num_heads} attention heads of {self.model.name} cannot be divided "
                f"among {self.tensor_parallel} devices"
            )

    @property
    def reads_shared_kv_once(self) -> bool:
        """Whether `work` has to say what its decodes share."""
        return self.kv_reading in ("once", "once-slow")

    def mode_of(self, work: StepWork) -> Mode | None:
        """Which graphs a step that does `work` can replay; None where graphs are not looked at."""
        return None if self.graphs is None else self.graphs.mode_of(work)

    def agreed(self, works: Sequence[StepWork]) -> Agreed | None:
        """What ranks in lockstep that do `works` agree on; None where graphs are not looked at."""
        return None if self.graphs is None else agreed(works, self.graphs)

    def time_of(self, work: StepWork, together: Agreed | None = None) -> StepTime:
        """The parts of a step that does `work`. together: what ranks in lockstep have agreed on; None for an engine alone."""
        if self.graphs is None:
            return self._device_time(work, work.num_tokens)
        mode = self.graphs.mode_of(work) if together is None else together.mode
        num_tokens = self.graphs.padded(work.num_tokens, mode)
        if together is not None:
            num_tokens = max(num_tokens, together.num_tokens)
        time = self._device_time(work, num_tokens)
        busy_s = time.total_s - time.step_s - time.requests_s
        time.launch_s = max(self.graphs.host_s(mode, self.model.num_layers) - busy_s, 0.0)
        return time

    def _device_time(self, work: StepWork, num_tokens: int) -> StepTime:
        """Without what the host does; num_tokens: through the layers, padding included."""
        model = self.model
        kv_bytes = model.kv_bytes_per_device(self.tensor_parallel) * self.tensor_parallel
        decode_kv = read_as_tokens(self.kv_reading, work, model, self.device.cache_gain)
        return StepTime(
            linear_s=self._longer(2.0 * model.layer_weights * num_tokens, model.layer_bytes),
            head_s=self._longer(
                2.0 * model.head_weights * work.num_sampled,
                model.head_bytes if work.num_sampled else 0.0,
            ),
            prefill_attention_s=self._longer(
                model.attention_flops_per_pair * work.prefill_pairs,
                kv_bytes * work.prefill_kv_tokens,
            ),
            decode_attention_s=self._longer(0.0, kv_bytes * decode_kv)
            + launches_s(self.kv_reading, work, model),
            communication_s=self._communication_s(num_tokens),
            step_s=self.constants.step_s,
            requests_s=self.constants.request_s * work.num_requests,
        )

    def _longer(self, flops: float, num_bytes: float) -> float:
        """Seconds for operations and memory traffic that overlap, divided among the devices."""
        seconds = max(flops / self.device.flops, num_bytes / self.device.bandwidth)
        return seconds / (self.constants.efficiency * self.tensor_parallel)

    def _communication_s(self, num_tokens: int) -> float:
        """Two ring all-reduces a layer: each moves 2 (n - 1) / n of the activations."""
        n = self.tensor_parallel
        if n == 1:
            return 0.0
        moved = 2.0 * (n - 1) / n * num_tokens * self.model.hidden_size * 2.0
        return 2.0 * self.model.num_layers * moved / self.device.link_bandwidth


@dataclass(frozen=True, slots=True)
class MeasuredCosts(StepCosts):
    """What a step costs on a real engine, seconds.

    kv_s: here per token of KV that a decode attends to, shared or not: computing. held_s: per
    distinct token of KV that decodes read: what several requests share comes from memory once
    and then from a cache of the processor. pair_s: per (query, key) pair of a prefill.
    """

    held_s: float = 0.0
    pair_s: float = 0.0

    @classmethod
    def of(cls, costs: StepCosts) -> Self:
        """The same costs, with nothing for memory and pairs apart."""
        return cls(**asdict(costs))


@dataclass(frozen=True, slots=True)
class Measured:
    """Linear costs, as found on a real engine."""

    costs: MeasuredCosts
    reads_shared_kv_once: ClassVar[bool] = False

    def mode_of(self, work: StepWork) -> Mode | None:
        """None: on a CPU nothing is captured."""
        return None

    def agreed(self, works: Sequence[StepWork]) -> Agreed | None:
        """None: on a CPU nothing is captured."""
        return None

    def time_of(self, work: StepWork, together: Agreed | None = None) -> StepTime:
        """The parts of a step that does `work`."""
        num_prefill = max(work.num_tokens - work.num_sampled, 0)
        return StepTime(
            linear_s=num_prefill * self.costs.prefill_s,
            prefill_attention_s=work.prefill_pairs * self.costs.pair_s,
            decode_attention_s=(
                work.decode_kv_tokens * self.costs.kv_s
                + work.decode_kv_distinct * self.costs.held_s
            ),
            step_s=self.costs.step_s,
            requests_s=work.num_sampled * self.costs.decode_s,
        )
