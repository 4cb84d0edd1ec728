# SPDX-License-Identifier: Apache-2.0
"""``vllm-batchllm``: plan a batch before money is spent, and measure what the plugin brings."""

from __future__ import annotations

import functools
from collections.abc import Callable

import typer

from vllm_batchllm.bench.command import bench
from vllm_batchllm.calibrate.command import calibrate
from vllm_batchllm.compat import version as vllm_version
from vllm_batchllm.doctor.command import doctor
from vllm_batchllm.jobs.arrange_command import arrange
from vllm_batchllm.jobs.command import run, status
from vllm_batchllm.plan.command import plan
from vllm_batchllm.plugin.job_process import belong_to_job
from vllm_batchllm.release.command import release
from vllm_batchllm.simulate.command import simulate

EXIT_USAGE = 2

belong_to_job()  # a process that a job has spawned imports this first, long before vLLM loads its plugins


def with_vllm(command: Callable[..., None]) -> Callable[..., None]:
    """``command``, refused in one line where no supported vLLM is installed."""

    @functools.wraps(command)
    def checked(*args: object, **kwargs: object) -> None:
        try:
            vllm_version.check_vllm_version()
        except vllm_version.UnsupportedVLLMError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_USAGE) from None
        command(*args, **kwargs)

    return checked


app = typer.Typer(
    name="vllm-batchllm",
    help="vLLM for large batches whose prompts share prefixes.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("plan")(plan)
app.command("bench")(with_vllm(bench))
app.command("simulate")(with_vllm(simulate))
app.command("calibrate")(with_vllm(calibrate))
app.command(
    "run",
    # Every option of vLLM's is one of this command, and only vLLM's own parser knows them.
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    },
)(with_vllm(run))
app.command("status")(status)
app.command("arrange")(arrange)
app.command("release")(release)
app.command("doctor")(doctor)  # says what is wrong with vLLM itself


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
