# SPDX-License-Identifier: Apache-2.0
"""Compile the attention kernels for devices that are not here: registers, spills, shared memory, instructions.

    python benchmarks/gpu/compile_kernels.py                      table of everything that is shipped
    python benchmarks/gpu/compile_kernels.py --json FILE --only sm_90
    python benchmarks/gpu/compile_kernels.py --try 64 64 4 3 --head 256 --only sm_80

Triton's compiler and the assembler in its package need no GPU. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vllm_batchllm.attention import attention_kernels, merge_kernels, planning_kernels
from vllm_batchllm.attention.shape import next_power_of_two
from vllm_batchllm.attention.tiles import ARCHITECTURES, Architecture, shipped_tiles

POINTERS = {
    "block_table": "*i32", "seq_lens": "*i32", "query_start": "*i32", "items": "*i32", "num_items": "*i32",
    "nodes": "*i32", "node_of_row": "*i32", "equal_blocks": "*i32", "counts": "*i32", "shared_lens": "*i32",
    "own_lens": "*i32", "own_table": "*i32", "partials": "*fp32", "partial_lse": "*fp32", "own_lse": "*fp32",
    "own": "*fp32", "q_scale": "*fp32", "k_scale": "*fp32", "v_scale": "*fp32", "softmax_scale": "fp32",
}  # fmt: skip
INSTRUCTIONS = ("HGMMA", "HMMA", "UTCHMMA", "LDGSTS.E.BYPASS.128", "LDGSTS", "STL", "LDL")


@dataclass(frozen=True)
class Compiled:
    """What became of one kernel."""

    kernel: str
    architecture: str
    head_size: int
    kv_type: str
    m: int
    n: int
    num_warps: int
    num_stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: dict[str, int]


def compile_kernel(
    kernel: Any, architecture: Architecture, types: dict[str, str], constants: dict[str, Any], num_warps: int, num_stages: int
) -> Any:  # fmt: skip
    """Compile with what the launches tell Triton: pointers and strides divide by 16."""
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else types.get(name, POINTERS.get(name, "i32"))
        for name in names
    }
    divisible = [n for n in names if signature[n].startswith("*") or n.endswith("stride")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    target = GPUTarget(architecture.backend, architecture.target, architecture.warp)
    return triton.compile(
        source, target=target, options={"num_warps": num_warps, "num_stages": num_stages}
    )


def resources(compiled: Any, architecture: Architecture) -> tuple[int, int, dict[str, int]]:
    """Registers, bytes of spills, and how often some instructions stand in the code."""
    if architecture.backend == "hip":
        text = compiled.asm["amdgcn"]
        numbers = [
            int(re.findall(rf"\.{k}:\s*(\d+)", text)[-1])
            for k in ("vgpr_count", "vgpr_spill_count")
        ]
        return numbers[0], 4 * numbers[1], {"mfma": text.count("v_mfma")}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([str(tools / tool), *options, file.name], capture_output=True, text=True, check=True).stdout
            for tool, options in (("cuobjdump", ["-res-usage"]), ("nvdisasm", []))
        )  # fmt: skip
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    counts = {name: len(re.findall(rf"\b{re.escape(name)}", code)) for name in INSTRUCTIONS}
    return int(found[1]), int(found[2]), {name: count for name, count in counts.items() if count}


def prefix_case(
    architecture: Architecture, head_size: int, kv_type: str, tile: tuple[int, ...], group: int = 4
) -> Compiled:
    """The prefix kernel with one tile."""
    m, n, *_ = tile
    constants = {
        "GROUP": group, "MAX_QUERY_LEN": 1, "NUM_KV_HEADS": 8, "HEAD_SIZE": head_size,
        "PADDED_HEAD": next_power_of_two(head_size), "BLOCK_SIZE": 16, "TILE_M": m, "TILE_N": n,
        "QUANTIZED": kv_type.startswith("fp8"), "QUANTIZED_Q": False, "WIDEN": False,
        "COMPUTE": triton.language.bfloat16, "ITEM_COLUMNS": planning_kernels.NUM_ITEM_COLUMNS,
    }  # fmt: skip
    types = {"q": "*bf16", "keys": f"*{kv_type}", "values": f"*{kv_type}"}
    kernel = attention_kernels.prefix_kernel
    return report("prefix", kernel, architecture, head_size, kv_type, tile, types, constants)


def report(
    name: str, kernel: Any, architecture: Architecture, head_size: int, kv_type: str,
    tile: tuple[int, ...], types: dict[str, str], constants: dict[str, Any],
) -> Compiled:  # fmt: skip
    compiled = compile_kernel(kernel, architecture, types, constants, *tile[2:])
    registers, spills, instructions = resources(compiled, architecture)
    return Compiled(
        name,
        architecture.name,
        head_size,
        kv_type,
        *tile,
        registers,
        spills,
        compiled.metadata.shared,
        instructions,
    )


def other_cases(architecture: Architecture, head_size: int) -> Iterator[Compiled]:
    """Planning and merges, at 1,024 rows."""
    sizes = {"BLOCK_SIZE": 16, "PADDED": 2048}
    cut = {
        "GROUP": 4, "MAX_QUERY_LEN": 1, "WIDE_M": 64, "NARROW_M": 16, "NARROW_BELOW": 32, "UNIT": 64,
    }  # fmt: skip
    heads = {
        "NUM_HEADS": 32, "HEAD_SIZE": head_size, "PADDED_HEAD": next_power_of_two(head_size), "TILE_HEADS": 16,
        "PADDED": 2048,
    }  # fmt: skip
    plan, merge = planning_kernels, merge_kernels
    cases: list[tuple[Any, dict[str, Any]]] = [
        (plan.equal_blocks_kernel, {"MAX_QUERY_LEN": 1, "BLOCK_SIZE": 16, "CHUNK": 256}),
        (plan.nodes_kernel, {"COST_TOKENS": 32, "MIN_TOKENS": 64, **sizes}),
        (plan.parents_kernel, {"PADDED": 2048}),
        (plan.splits_kernel, {"NUM_KV_HEADS": 8, "PROGRAMS": 264, "MIN_SPLIT": 256, "MAX_SPLITS": 8, "MAX_LEVELS": 4, **cut, **sizes}),
        (plan.finish_kernel, {"SHIFT": True, "CHUNK": 256, "ITEM_COLUMNS": plan.NUM_ITEM_COLUMNS, **cut, **sizes}),
        (merge.merge_into_kernel, {"MAX_QUERY_LEN": 1, **heads}),
        (merge.merge_kernel, {"MAX_QUERY_LEN": 1, "NUM_SPLITS_OWN": 1, **heads}),
    ]  # fmt: skip
    for kernel, constants in cases:
        name = kernel.__name__.removesuffix("_kernel")
        yield report(
            name, kernel, architecture, head_size, "bf16", (0, 0, 4, 3), {"out": "*bf16"}, constants
        )


def suffix_case(
    architecture: Architecture, head_size: int, kv_type: str, tile: tuple[int, ...]
) -> Compiled:
    """The kernel for own KV, of the portable backend."""
    m, n, *_ = tile
    constants = {
        "GROUP": 4, "NUM_KV_HEADS": 8, "HEAD_SIZE": head_size, "PADDED_HEAD": next_power_of_two(head_size),
        "BLOCK_SIZE": 16, "TILE_M": m, "TILE_N": n, "NUM_SPLITS_OWN": 1, "QUANTIZED": kv_type.startswith("fp8"),
        "QUANTIZED_Q": False, "WIDEN": False, "COMPUTE": triton.language.bfloat16,
    }  # fmt: skip
    types = {"q": "*bf16", "keys": f"*{kv_type}", "values": f"*{kv_type}"}
    return report(
        "suffix",
        attention_kernels.suffix_kernel,
        architecture,
        head_size,
        kv_type,
        tile,
        types,
        constants,
    )


def everything(architecture: Architecture) -> Iterator[Compiled]:
    """All that is shipped for an architecture."""
    for head_size, kv_type, tile in shipped_tiles(architecture.name):
        yield prefix_case(architecture, head_size, kv_type, tile)
        if architecture.backend == "hip" and tile[0] > 16:  # the portable backend's own part
            yield suffix_case(architecture, head_size, kv_type, (16, tile[1], 4, 2))
    yield from other_cases(architecture, 128)


def show(each: Compiled) -> str:
    tile = f"{each.m} x {each.n}" if each.m else ""
    used = ", ".join(f"{name} {count}" for name, count in each.instructions.items())
    return (
        f"| {each.architecture} | {each.kernel} | {each.head_size} | {each.kv_type} | {tile} | {each.num_warps} / {each.num_stages} "
        f"| {each.registers} | {each.spill_bytes} | {each.shared_bytes / 1024:.0f} K | {used} |"
    )


def main() -> None:
    """Compile and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="this architecture alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--try", dest="tile", nargs=4, type=int, help="rows, tokens, warps, stages of one tile"
    )
    parser.add_argument("--head", type=int, default=128)
    parser.add_argument("--kv-type", default="bf16")
    parser.add_argument("--kernel", choices=["prefix", "suffix"], default="prefix")
    args = parser.parse_args()
    found = []
    print(
        "| architecture | kernel | head | KV | tile | warps / stages | registers | spills, B | shared | instructions |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for architecture in ARCHITECTURES:
        if args.only not in (None, architecture.name):
            continue
        one = prefix_case if args.kernel == "prefix" else suffix_case
        cases = (
            [one(architecture, args.head, args.kv_type, tuple(args.tile))]
            if args.tile
            else everything(architecture)
        )
        for each in cases:
            print(show(each), flush=True)
            found.append(asdict(each))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
