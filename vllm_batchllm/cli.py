# SPDX-License-Identifier: Apache-2.0
"""``vllm-batchllm``: plan a batch before money is spent, and measure what the plugin brings."""

from __future__ import annotations

import typer

from vllm_batchllm.bench.command import bench
from vllm_batchllm.calibrate.command import calibrate
from vllm_batchllm.plan.command import plan
from vllm_batchllm.simulate.command import simulate

app = typer.Typer(
    name="vllm-batchllm",
    help="vLLM for large batches whose prompts share prefixes.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("plan")(plan)
app.command("bench")(bench)
app.command("simulate")(simulate)
app.command("calibrate")(calibrate)


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    if version:
        import vllm_batchllm

        typer.echo(vllm_batchllm.__version__)
        raise typer.Exit()


def main() -> None:
    """Entry point of the console script."""
    app()
