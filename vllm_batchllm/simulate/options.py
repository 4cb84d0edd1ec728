# SPDX-License-Identifier: Apache-2.0
"""Options of `vllm-batchllm simulate`, and what its help says of them."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_batchllm.hardware.devices import CPU, DEVICES
from vllm_batchllm.hardware.models import MODELS
from vllm_batchllm.simulate.arms import arm_names
from vllm_batchllm.simulate.arrivals import KINDS
from vllm_batchllm.simulate.placement import OURS_PLACED, PLACEMENTS
from vllm_batchllm.workloads.catalog import workload_names

SOURCES = f"Workloads ({', '.join(workload_names())}), files (.jsonl, .gz, .zst, .parquet, - for standard input) or traces."
DEVICES_HELP = f"One of {', '.join(DEVICES)}, {CPU} (this machine, calibrated)."
MODELS_HELP = f"One of {', '.join(MODELS)}, or a folder with a config.json."
ARMS_HELP = f"Policies to compare, several times: {', '.join(arm_names())}."


WeightBits = Annotated[float | None, typer.Option(help="Bits of a weight (default: the model's).")]
Tokenizer = Annotated[
    str | None, typer.Option(help="Model whose tokenizer reads batch files with text.")
]
Lookahead = Annotated[
    int | None, typer.Option(help="Requests that wait at most at any time (default: all).")
]
SharedAttention = Annotated[
    bool, typer.Option(help="Also ours with shared attention, between two bounds.")
]
Replicas = Annotated[int, typer.Option(help="Engines that share the batch.")]
Placement = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Who of several replicas gets which requests, several times: {', '.join(PLACEMENTS)} "
        f"(default: {OURS_PLACED})."
    ),
]
SlowestSpeed = Annotated[
    float | None, typer.Option(help="Of the first of several replicas; the others run at 1.")
]
Lockstep = Annotated[
    bool,
    typer.Option(
        help="Replicas make every step together, as data-parallel ranks of a mixture of experts."
    ),
]
ArrivalsKind = Annotated[
    str | None,
    typer.Option(
        "--arrivals",
        help=f"How requests arrive over time: {', '.join(KINDS)} (default: all are there at the start).",
    ),
]
Rate = Annotated[float | None, typer.Option(help="Requests that arrive per second.")]
BurstSize = Annotated[int | None, typer.Option(help="Requests that arrive together, in bursts.")]
Price = Annotated[
    float | None, typer.Option(help="Of one device for an hour, in any currency.", min=0)
]
