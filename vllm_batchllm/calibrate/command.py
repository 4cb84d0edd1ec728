# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm calibrate`: measure this machine for `simulate --device cpu`.

Exit codes: 0 done, 1 the result cannot be kept, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from vllm_batchllm.bench.suite import check_model
from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.command_line import quieten
from vllm_batchllm.shared_options import ModelOrRandom


def calibrate(model: ModelOrRandom = None) -> None:
    """Measure what a step costs on this machine, for `simulate --device cpu`."""
    quieten()
    try:
        if model is not None:
            check_model(model)
        from vllm_batchllm.calibrate.measurement import calibrate as run

        made = run(model, lambda name: print(f"calibrating: {name}", file=sys.stderr))
        path = made.save()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as error:
        print(f"error: the calibration cannot be written: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    costs = made.costs
    print(
        f"a step {costs.step_s * 1e3:.2f} ms, a prompt token {costs.prefill_s * 1e6:.1f} µs, "
        f"an output token {costs.decode_s * 1e6:.0f} µs, "
        f"1,000 tokens of KV read {costs.kv_s * 1e6:.2f} ms, or from memory "
        f"{(costs.kv_s + costs.held_s) * 1e6:.2f} ms, 1,000,000 pairs of prompt attention "
        f"{costs.pair_s * 1e9:.1f} ms: {made.num_steps} steps of {made.model}; kept in {path}"
    )
