# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm release`: when to serve a batch and how large a one, for a server told in figures.

Exit codes: 0 done, 1 a picture could not be written, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_batchllm.errors import UsageError
from vllm_batchllm.messages import clip
from vllm_batchllm.shared_options import AsJson, Plot

if TYPE_CHECKING:  # numpy is loaded when it is needed, not for --help
    from vllm_batchllm.admission.release_server import BatchServer
    from vllm_batchllm.release.compare import Comparison

EXIT_FAILED, EXIT_USAGE = 1, 2


def release(
    arrival_rate: Annotated[float, typer.Option(help="Requests that arrive in a second.")],
    service_ms: Annotated[
        str,
        typer.Option(
            metavar="FIXED,EACH",
            help="Milliseconds of a batch: a fixed part, and one for each of its requests.",
        ),
    ],
    energy_mj: Annotated[
        str,
        typer.Option(
            metavar="FIXED,EACH",
            help="Millijoules of a batch; watts are millijoules a millisecond.",
        ),
    ] = "0,0",
    max_batch: Annotated[int, typer.Option(help="Largest batch.")] = 32,
    min_batch: Annotated[int, typer.Option(help="Smallest batch.")] = 1,
    w_latency: Annotated[
        float, typer.Option(help="What a millisecond of mean response time counts.")
    ] = 1.0,
    w_power: Annotated[float, typer.Option(help="What a watt of mean power counts.")] = 0.0,
    states: Annotated[
        int | None,
        typer.Option(help="Waiting requests that are told apart; chosen so that they suffice."),
    ] = None,
    overflow_cost: Annotated[
        float | None,
        typer.Option(help="Abstract cost of a millisecond with more than these; chosen."),
    ] = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Work out when a server of whole batches should serve, and how many at once."""
    try:
        _check_plot(plot)
        pairs = _pair("--service-ms", service_ms), _pair("--energy-mj", energy_mj)
        weights = {"--w-latency": w_latency, "--w-power": w_power}
        _check_batches(min_batch, max_batch)
        _check_weights(weights, energy_mj if not any(pairs[1]) else None)
        server = _server(arrival_rate, pairs, (min_batch, max_batch), (w_latency, w_power))
        _check_load(server)
        _check_states(server, states, overflow_cost)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    from vllm_batchllm.release.compare import compare

    _output(compare(server, states, overflow_cost), as_json, plot)


def _pair(option: str, text: str) -> tuple[float, float]:
    try:
        fixed, each = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {clip(text)} is not two numbers; give the fixed part and that of each "
            f"request, as {option} 1.05,0.31"
        ) from None
    for value in (fixed, each):
        _check_bounds(f"{option} {text}:", value)
    if option == "--service-ms" and not fixed + each > 0:
        raise UsageError(f"{option} {text}: a batch takes no time; one of the two must be above 0")
    return fixed, each


def _check_batches(min_batch: int, max_batch: int) -> None:
    from vllm_batchllm.admission.release_server import MAX_BATCH

    if not 1 <= max_batch <= MAX_BATCH:
        raise UsageError(f"--max-batch {max_batch}: must be from 1 to {MAX_BATCH:,}")
    if min_batch < 1:
        raise UsageError(f"--min-batch {min_batch}: must be 1 or more")
    if min_batch > max_batch:
        raise UsageError(
            f"--min-batch {min_batch} is above --max-batch {max_batch}; lower one or raise the other"
        )


def _check_weights(weights: dict[str, float], no_energy: str | None) -> None:
    """``no_energy``: what was given for it, where a batch takes none."""
    for option, weight in weights.items():
        _check_bounds(option, weight)
    if not any(weights.values()):
        raise UsageError(
            "--w-latency 0 and --w-power 0: nothing is wanted; give one of them a number above 0"
        )
    if weights["--w-power"] and no_energy is not None:
        raise UsageError(
            f"--w-power {weights['--w-power']:g} weighs the power that batches take, but "
            f"--energy-mj is {no_energy}; give the energy of a batch, or leave --w-power out"
        )


def _check_bounds(option: str, value: float, least: float = 0.0) -> None:
    from vllm_batchllm.admission.release_server import MOST

    if not least <= value <= MOST:
        raise UsageError(f"{option} {value:g}: must be a number from {least:g} to {MOST:g}")


def _server(
    arrival_rate: float,
    pairs: tuple[tuple[float, float], tuple[float, float]],
    sizes: tuple[int, int],
    weights: tuple[float, float],
) -> BatchServer:
    from vllm_batchllm.admission.release_server import LEAST, BatchServer

    _check_bounds("--arrival-rate", arrival_rate, LEAST)
    min_batch, max_batch = sizes
    try:
        return BatchServer.affine(arrival_rate, *pairs, max_batch, min_batch, *weights)
    except ValueError as error:  # a batch of many takes too much
        raise UsageError(f"--service-ms, --energy-mj: {error}") from None


def _check_load(server: BatchServer) -> None:
    if server.load_ratio < 1:
        return
    batch = server.fastest_batch
    raise UsageError(
        f"--arrival-rate {server.arrival_rate:g}: batches of {batch} in "
        f"{server.service_ms[batch - 1]:g} ms serve {server.max_rate:,.6g} requests a second at "
        f"most, so the queue grows for ever; lower it, raise --max-batch or mend --service-ms"
    )


def _check_states(server: BatchServer, states: int | None, overflow_cost: float | None) -> None:
    from vllm_batchllm.admission.release_model import MAX_STATES

    if states is not None and not server.max_batch <= states <= MAX_STATES:
        raise UsageError(
            f"--states {states}: must be from --max-batch, {server.max_batch}, to {MAX_STATES:,}"
        )
    if overflow_cost is not None:
        _check_bounds("--overflow-cost", overflow_cost)


def _check_plot(plot: Path | None) -> None:
    if plot is None:
        return
    if plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot} does not end in .png, and nothing else is written")
    if not plot.parent.is_dir():
        raise UsageError(f"--plot {plot}: there is no folder {plot.parent}; create it first")
    if plot.is_dir():
        raise UsageError(f"--plot {plot} is a folder; name a file")


def _output(comparison: Comparison, as_json: bool, path: Path | None) -> None:
    from rich.console import Console

    from vllm_batchllm.release.show import plot, policy_text, table, to_json

    policy, server = comparison.policy, comparison.server
    if as_json:
        print(to_json(comparison))
    else:
        print(f"load {server.load_ratio:.3f} of {server.max_rate:,.1f} requests a second")
        print(f"control limit {policy.control_limit}; waiting requests: batch")
        print(f"  {policy_text(policy)}\n")
        Console().print(table(comparison))
        if comparison.rows[-1].cost_error is None:
            print("\ntime-outs are not simulated here: it would take too long to be right")
        else:
            print("\nN, or T ms: serve when N wait or the oldest has waited T; the best of some")
    _warn(comparison)
    if path is not None:
        try:
            plot(comparison, path)
        except OSError as error:
            print(f"error: {path} cannot be written: {error.strerror or error}", file=sys.stderr)
            raise typer.Exit(EXIT_FAILED) from None


def _warn(comparison: Comparison) -> None:
    from vllm_batchllm.admission.release_model import MAX_STATES
    from vllm_batchllm.admission.release_policy import ENOUGH_OVERFLOW

    policy = comparison.policy
    if policy.overflow_ratio <= ENOUGH_OVERFLOW:
        return
    way_out = "give more --states" if policy.num_states < MAX_STATES else "the load is too near 1"
    print(
        f"note: more than {policy.num_states} requests wait {policy.overflow_ratio:.2%} of the "
        f"time; the figures count them as so many and are too low: {way_out}",
        file=sys.stderr,
    )
