# SPDX-License-Identifier: Apache-2.0
"""The tiles that are shipped, by architecture, head size and type of the KV cache.

Each compiles without spills (tests/attention/test_compiled.py; table in docs/attention.md). Between those that do, one H100
has chosen (benchmarks/results/gpu); what another device would choose is not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_batchllm.attention.shape import Tile, Tiles


@dataclass(frozen=True)
class Architecture:
    """A device as the compiler knows it.

    target: Triton's name of the backend and of the architecture. warp: threads of a warp. shared_bytes: shared memory that
    one program may take.
    """

    name: str
    backend: str
    target: int | str
    warp: int
    shared_bytes: int


ARCHITECTURES = (
    Architecture("sm_80", "cuda", 80, 32, 99 * 1024),  # what 8.6 and 8.9 have; 8.0 has 163 K
    Architecture("sm_90", "cuda", 90, 32, 227 * 1024),
    Architecture("sm_100", "cuda", 100, 32, 227 * 1024),
    Architecture("gfx942", "hip", "gfx942", 64, 64 * 1024),
)

PROGRAMS_PER_UNIT = 2
"""Programs of the wide tile on each multiprocessor; of the narrow one twice as many."""


NVIDIA = {8: "sm_80", 9: "sm_90", 10: "sm_100"}
"""Architecture by the first figure of the compute capability."""

KV_TYPES = {
    "sm_80": ("bf16",),
    "sm_90": ("bf16", "fp8e4nv"),
    "sm_100": ("bf16", "fp8e4nv"),
    "gfx942": ("bf16",),
}
"""Types of the KV cache that are compiled for each."""

_NARROW = (16, 64, 4, 3)
SHIPPED: dict[tuple[str, int], tuple[tuple[int, int, int, int], tuple[int, int, int, int], int]] = {
    ("sm_80", 64): ((64, 64, 4, 3), _NARROW, 48),
    ("sm_80", 128): ((64, 64, 4, 3), _NARROW, 48),
    ("sm_80", 256): ((32, 32, 4, 3), (16, 32, 4, 3), 32),
    ("sm_90", 64): ((64, 64, 4, 3), _NARROW, 48),
    ("sm_90", 128): ((64, 64, 4, 3), _NARROW, 48),
    ("sm_90", 256): ((64, 32, 8, 3), (16, 32, 4, 3), 48),
    ("sm_100", 64): ((64, 64, 4, 3), _NARROW, 48),
    ("sm_100", 128): ((64, 64, 8, 3), _NARROW, 48),
    ("sm_100", 256): ((32, 32, 8, 3), (16, 32, 4, 3), 32),
    ("gfx942", 64): ((64, 64, 4, 2), (16, 64, 4, 2), 48),
    ("gfx942", 128): ((64, 64, 4, 2), (16, 64, 4, 2), 48),
    ("gfx942", 256): ((32, 32, 4, 2), (16, 32, 4, 2), 32),
}
"""By architecture and padded head size: the wide tile and the narrow one, each rows, tokens, warps, stages; and below how
many packed queries a node gets the narrow one."""

INTERPRETED = Tiles(
    wide=Tile(32, 32, 4, 1, 2), narrow=Tile(16, 32, 4, 1, 2), narrow_below=24, min_split=64
)
"""For Triton's interpreter, where programs run one after the other."""


def tiles_for(architecture: str, padded_head: int, *, num_units: int) -> Tiles:
    """The tiles of a device with ``num_units`` multiprocessors (compute units on AMD).

    Raises:
        KeyError: no tile is shipped for this architecture or head size.
    """
    wide, narrow, below = SHIPPED[architecture, padded_head]
    programs = PROGRAMS_PER_UNIT * num_units
    return Tiles(
        wide=Tile(*wide, num_programs=programs),
        narrow=Tile(*narrow, num_programs=2 * programs),
        narrow_below=below,
    )


def shipped_tiles(architecture: str) -> list[tuple[int, str, tuple[int, int, int, int]]]:
    """Everything that is shipped for an architecture: head size, type of the KV cache, tile."""
    return [
        (head, kv_type, tile)
        for (name, head), (wide, narrow, _) in SHIPPED.items()
        if name == architecture
        for kv_type in KV_TYPES[architecture]
        for tile in (wide, narrow)
    ]


def tiles_of_device(device: torch.device, padded_head: int) -> Tiles:
    """The tiles of the device at hand.

    Raises:
        ValueError: no tiles are shipped for it.
    """
    if device.type == "cpu":  # Triton's interpreter
        return INTERPRETED
    name = architecture_of(device)
    if name is None or (name, padded_head) not in SHIPPED:
        raise ValueError(
            f"shared attention has no tiles for {torch.cuda.get_device_name(device)} and heads of {padded_head}; "
            "switch it off by 'shared_attention' = 'off'"
        )
    num_units = torch.cuda.get_device_properties(device).multi_processor_count
    return tiles_for(name, padded_head, num_units=num_units)


def architecture_of(device: torch.device) -> str | None:
    """The architecture whose tiles a device takes; None if there is none."""
    if torch.version.hip is not None:
        name = str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
        return "gfx942" if name == "gfx942" else None
    return NVIDIA.get(torch.cuda.get_device_capability(device)[0])
