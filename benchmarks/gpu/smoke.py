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

import torch
from flash_calls import FlashCall, find_flash, rival
from one_layer import Case, Layer, Setting

from vllm_batchllm.attention.shape import Tile

ERROR_LIMIT = 1e-2
"""Against float64, in bfloat16: more is a mistake."""


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
