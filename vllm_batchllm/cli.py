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
from vllm_batchllm.errors import EXIT_INTERRUPTED
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


def interruptible(command: Callable[..., None], words: str = "") -> Callable[..., None]:
    """``command``, which the user may interrupt: no traceback, and ``words`` on what that means."""

    @functools.wraps(command)
    def guarded(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo(f"interrupted{words}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return guarded


app = typer.Typer(
    name="vllm-batchllm",
    help="vLLM for large batches whose prompts share prefixes.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("plan")(interruptible(plan))
app.command("bench")(with_vllm(interruptible(bench)))
app.command("simulate")(with_vllm(interruptible(simulate)))
app.command("calibrate")(
    with_vllm(interruptible(calibrate, "; the calibration before, if any, stands"))
)
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
app.command("arrange")(interruptible(arrange, "; give the same command again"))
app.command("release")(interruptible(release))
app.command("doctor")(interruptible(doctor))  # says what is wrong with vLLM itself


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
