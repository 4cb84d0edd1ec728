# SPDX-License-Identifier: Apache-2.0
"""The first minutes on a GPU: is shared attention right there, can it be captured, and what does it cost? One layer.

    python benchmarks/gpu/smoke.py --out result.json           under 5 minutes; torch and triton are enough
    TRITON_INTERPRET=1 python benchmarks/gpu/smoke.py --dry     the same code on small shapes, without a GPU

"Stock" is FlashAttention over everything: vLLM's if it is installed, else the flash-attn package's, else our own kernel with
nothing shared (said in the table). "Grouped" is that call over each request's own KV, the prefix kernels, and the merge.
"Rival" reads the prefix by a second FlashAttention call. Every figure is the mean of replays of a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flash_calls import FlashCall, find_flash, rival

from vllm_batchllm.attention.grouping import GroupingRule
from vllm_batchllm.attention.launch import (
    LayerInputs,
    attend_own_and_merge,
    attend_shared,
    merge_into,
)
from vllm_batchllm.attention.plan import PartialBuffers, SharedKVPlan, partial_capacity
from vllm_batchllm.attention.reference import dense_attention
from vllm_batchllm.attention.shape import AttentionShape, Tile, Tiles
from vllm_batchllm.attention.tiles import INTERPRETED, tiles_of_device

ERROR_LIMIT = 1e-2
"""Against float64, in bfloat16: more is a mistake."""


@dataclass(frozen=True)
class Case:
    """Groups of equal rows: how many, of how many, sharing how many tokens, each with how many of its own."""

    groups: int
    degree: int
    prefix: int
    own: int

    def __str__(self) -> str:
        return f"{self.groups} x {self.degree}, {self.prefix:,} + {self.own}"


CASES = (
    Case(16, 16, 2000, 250), Case(64, 4, 2000, 250), Case(128, 2, 2000, 250), Case(85, 3, 1568, 55),
    Case(16, 16, 512, 250), Case(8, 16, 16000, 250), Case(1, 256, 2000, 250), Case(256, 1, 2000, 250),
)  # fmt: skip
DRY_CASES = (Case(2, 5, 64, 20), Case(10, 1, 32, 20))
TILES = (
    (16, 64, 2, 3),
    (16, 64, 4, 3),
    (32, 64, 4, 3),
    (64, 64, 4, 3),
    (64, 64, 8, 3),
    (128, 64, 8, 2),
)
"""Tiles that are tried for each case, beside the shipped ones."""


@dataclass(frozen=True)
class Setting:
    """Where and what: device, sizes of the layer."""

    device: torch.device
    dry: bool
    num_kv_heads: int = 8
    group: int = 4
    head_size: int = 128
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16

    @property
    def scale(self) -> float:
        return self.head_size**-0.5


@dataclass
class Figures:
    """Of one case: milliseconds, errors against float64, and what the plan said."""

    case: str
    stock_ms: float
    shipped_ms: float
    plan_ms: float
    rival_ms: float | None
    tiles_ms: dict[str, float]
    error_stock: float
    error_grouped: float
    error_rival: float | None
    kv_tokens: int
    kv_tokens_saved: int

    @property
    def gain(self) -> float:
        return self.stock_ms / self.shipped_ms if self.shipped_ms else float("nan")


class Layer:
    """Random KV at random places, and the calls over it."""

    def __init__(self, case: Case, setting: Setting, flash: FlashCall | None) -> None:
        self.case, self.setting, self.flash = case, setting, flash
        self.num_rows = case.groups * case.degree
        size, device = setting.block_size, setting.device
        shared, own = case.prefix // size, -(-(case.prefix % size + case.own) // size)
        num_blocks = 1 + case.groups * shared + self.num_rows * own
        ids = np.random.default_rng(0).permutation(np.arange(1, num_blocks)).astype(np.int32)
        table = np.zeros((self.num_rows, shared + own + 1), np.int32)
        table[:, :shared] = np.repeat(
            ids[: case.groups * shared].reshape(case.groups, shared), case.degree, 0
        )
        table[:, shared : shared + own] = ids[case.groups * shared :].reshape(self.num_rows, own)
        self.table = torch.from_numpy(table).to(device)
        self.lens = torch.full(
            (self.num_rows,), case.prefix + case.own, dtype=torch.int32, device=device
        )
        self.query_start = torch.arange(self.num_rows + 1, dtype=torch.int32, device=device)
        heads = setting.num_kv_heads * setting.group
        self.q = torch.randn(self.num_rows, heads, setting.head_size, device=device).to(
            setting.dtype
        )
        kv = torch.randn(
            num_blocks, setting.num_kv_heads, size, 2 * setting.head_size, device=device
        )
        self.keys, self.values = (
            kv.to(setting.dtype).transpose(1, 2).split(setting.head_size, dim=-1)
        )
        self.inputs = LayerInputs(
            self.q, self.keys, self.values, self.table, self.query_start, setting.scale
        )

    def plan(self, tiles: Tiles, rule: GroupingRule | None = None) -> SharedKVPlan:
        setting = self.setting
        rule = rule or (GroupingRule(8, 16) if setting.dry else GroupingRule())
        shape = AttentionShape(
            self.q.shape[1],
            setting.num_kv_heads,
            setting.head_size,
            setting.block_size,
            self.num_rows,
            self.table.shape[1],
        )
        partials = PartialBuffers.reserve(shape, partial_capacity(shape, rule), setting.device)
        return SharedKVPlan(shape, rule, tiles, partials)

    def build(self, plan: SharedKVPlan) -> None:
        plan.build(self.table, self.lens, self.query_start)

    def attend(self, plan: SharedKVPlan, out: torch.Tensor) -> None:
        """One layer on a plan: FlashAttention where there is one, our own kernel else."""
        if self.flash is None:
            own = PartialBuffers.reserve(plan.shape, self.num_rows, self.setting.device)
            attend_shared(plan, self.inputs)
            attend_own_and_merge(plan, self.inputs, self.lens, 1, own, 1, out)
            return
        longest = self.case.prefix + self.case.own
        lse = self.flash(self.inputs, plan.own_table, plan.own_lens, longest, out)
        attend_shared(plan, self.inputs)
        merge_into(plan, self.query_start, out, lse)

    def stock(self, out: torch.Tensor) -> Callable[[], None]:
        """Everything read by every row."""
        if self.flash is not None:
            longest, flash = self.case.prefix + self.case.own, self.flash
            return lambda: void(flash(self.inputs, self.table, self.lens, longest, out))
        plan = self.plan(self.shipped(), GroupingRule(min_tokens=10**9))
        self.build(plan)
        return lambda: self.attend(plan, out)

    def shipped(self) -> Tiles:
        if self.setting.dry:
            return INTERPRETED
        return tiles_of_device(self.setting.device, self.setting.head_size)

    def error(self, out: torch.Tensor) -> float:
        """Largest difference from float64, over the first rows and the last one."""
        rows = sorted({*range(min(self.num_rows, 4)), self.num_rows - 1})
        q, keys, values = (x.cpu().double() for x in (self.q[rows], self.keys, self.values))
        expected = dense_attention(
            q, keys.transpose(1, 2), values.transpose(1, 2), self.table[rows].cpu(),
            self.lens[rows].tolist(), list(range(len(rows) + 1)), self.setting.scale,
        )  # fmt: skip
        return float((out[rows].cpu().double() - expected).abs().max())


def void(_: Any) -> None:
    """Nothing of a result."""


def time_ms(call: Callable[[], None], setting: Setting, repeats: int = 30) -> float:
    """Milliseconds of a call, captured in a CUDA graph and replayed: so it also shows that it can be captured."""
    if setting.dry:
        call()
        return 0.0
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / repeats


def measure(case: Case, setting: Setting, flash: FlashCall | None) -> Figures:
    """All figures of a case."""
    layer = Layer(case, setting, flash)
    stock_out, out = torch.empty_like(layer.q), torch.empty_like(layer.q)
    stock_ms = time_ms(layer.stock(stock_out), setting)
    shipped = layer.plan(layer.shipped())
    plan_ms = time_ms(lambda: layer.build(shipped), setting)
    layer.build(shipped)
    shipped_ms = time_ms(lambda: layer.attend(shipped, out), setting)
    error = layer.error(out)
    tiles_ms = {}
    for tile in () if setting.dry else TILES:
        one = replace(
            layer.shipped(),
            narrow=None,
            narrow_below=0,
            wide=Tile(*tile, layer.shipped().num_programs),
        )
        plan = layer.plan(one)
        layer.build(plan)
        tiles_ms["x".join(map(str, tile))] = time_ms(
            lambda plan=plan: layer.attend(plan, out), setting
        )  # type: ignore[misc]
    rival_out = torch.empty_like(layer.q)
    other = rival(layer.inputs, flash, case.degree, case.prefix, case.own, layer.lens, rival_out)
    rival_ms = time_ms(other, setting) if other else None
    return Figures(
        str(case), stock_ms, shipped_ms, plan_ms, rival_ms, tiles_ms,
        layer.error(stock_out), error, layer.error(rival_out) if other else None,
        int(layer.lens.sum()), int(shipped.counts[3]),
    )  # fmt: skip


def table(found: list[Figures]) -> str:
    """What was measured, as Markdown."""
    lines = [
        "| groups x members, prefix + own | stock, ms | grouped, ms | stock / grouped | best tile | rival, ms | plan, ms | KV read | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in found:
        best = min(each.tiles_ms.items(), key=lambda item: item[1], default=("", 0.0))
        read = 1 - each.kv_tokens_saved / each.kv_tokens
        rival_ms = "" if each.rival_ms is None else f"{each.rival_ms:.3f}"
        errors = f"{each.error_grouped:.1e}, stock {each.error_stock:.1e}"
        errors += "" if each.error_rival is None else f", rival {each.error_rival:.1e}"
        lines.append(
            f"| {each.case} | {each.stock_ms:.3f} | {each.shipped_ms:.3f} | {each.gain:.2f} | {best[0]} {best[1]:.3f} "
            f"| {rival_ms} | {each.plan_ms:.3f} | {read:.3f} | {errors} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dry", action="store_true", help="small shapes in Triton's interpreter, no GPU"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        print("no GPU here; --dry runs the same code in Triton's interpreter", file=sys.stderr)
        return 1
    dry = {"num_kv_heads": 2, "group": 2, "head_size": 32, "dtype": torch.float32}
    setting = (
        Setting(torch.device("cpu"), True, **dry)
        if args.dry
        else Setting(torch.device("cuda"), False)
    )  # type: ignore[arg-type]
    name, flash = find_flash(dry=args.dry)
    device = "interpreter" if args.dry else torch.cuda.get_device_name()
    print(f"{device}; stock attention: {name}", flush=True)
    began = time.perf_counter()
    found = [measure(case, setting, flash) for case in (DRY_CASES if args.dry else CASES)]
    print(table(found))
    print(f"{time.perf_counter() - began:.0f} s")
    if args.out:
        versions = {"torch": torch.__version__, "stock": name, "device": device}
        args.out.write_text(
            json.dumps(
                {"environment": versions, "cases": [asdict(each) for each in found]}, indent=1
            )
        )
    wrong = [each.case for each in found if not each.error_grouped <= ERROR_LIMIT]
    if wrong:
        print(f"wrong: {'; '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
