# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: which steps can replay one, and how long the host takes to launch the others.

vLLM captures steps of decodes as a whole ("full"), and all other steps up to a number of tokens in
pieces, with attention outside ("piecewise"); a larger step launches every kernel by itself ("none"). The
device waits for launches only where it is done with its work before the host has launched the next
one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vllm_batchllm.simulate.cost_model import StepWork

Mode = Literal["full", "piecewise", "none"]
MODES: tuple[Mode, ...] = ("full", "piecewise", "none")
"""From the one that costs the host least to the one that costs it most."""

LAUNCH_S = 1e-5
"""Host time of one launch, with what comes before it in PyTorch (docs/benchmarks.md)."""

KERNELS_PER_LAYER = 12
"""Launches of one layer without a graph: norms, projections, rotary embedding, cache, attention, activation."""

PIECES_PER_LAYER = 4
"""Launches of one layer in pieces: cache, attention, and what leads to the next piece."""


def capture_sizes(max_num_seqs: int, most: int = 512) -> tuple[int, ...]:
    """Tokens of the steps that vLLM 0.32 captures by default, ascending."""
    largest = min(2 * max_num_seqs, most)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)]
    return tuple(size for size in sizes if size <= largest)


@dataclass(frozen=True, slots=True)
class Graphs:
    """What an engine has captured.

    sizes: tokens of captured steps, ascending; a smaller step is padded to the next. launch_s: host
    time of one launch. has_pieces: whether steps with prefills are captured, too; vLLM 0.6.4 captured decodes alone.
    """

    sizes: Sequence[int] = field(default_factory=lambda: capture_sizes(256))
    launch_s: float = LAUNCH_S
    has_pieces: bool = True

    def mode_of(self, work: StepWork) -> Mode:
        """How a step that does ``work`` is run."""
        if work.num_tokens > self.sizes[-1]:
            return "none"
        if work.num_tokens == work.num_requests:
            return "full"
        return "piecewise" if self.has_pieces else "none"

    def padded(self, num_tokens: int, mode: Mode) -> int:
        """Tokens that go through the layers."""
        if mode == "none":
            return num_tokens
        return self.sizes[bisect_left(self.sizes, num_tokens)]

    def host_s(self, mode: Mode, num_layers: int) -> float:
        """Seconds that the host takes to launch a step."""
        launches = {"full": 0, "piecewise": PIECES_PER_LAYER, "none": KERNELS_PER_LAYER}[mode]
        return self.launch_s * (1 + launches * num_layers)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What ranks that do every step together do alike: the mode, and tokens, where a rank with fewer is padded (0: none is)."""

    mode: Mode
    num_tokens: int


def agreed(works: Sequence[StepWork], graphs: Graphs) -> Agreed:
    """What data-parallel ranks of a mixture of experts agree on: the mode of the one that is worst off, and, where any graph
    is replayed, the tokens of the largest (vLLM's `coordinate_batch_across_dp`)."""
    mode = max((graphs.mode_of(work) for work in works), key=MODES.index)
    most = max(work.num_tokens for work in works)
    return Agreed(mode, 0 if mode == "none" else graphs.padded(most, mode))
