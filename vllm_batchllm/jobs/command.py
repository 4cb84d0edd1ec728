# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm run` and `vllm-batchllm status`: command lines around `Job`.

Answers go to OUTPUT, all else to standard error. Nothing that a user can mend ends in a traceback.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.command_line import quieten, tell_page
from vllm_batchllm.shared_options import AsJson

if TYPE_CHECKING:  # a job is loaded when there is one, not for --help
    from vllm_batchllm.jobs.job import Job
    from vllm_batchllm.jobs.session import JobSession

EXIT_DONE, EXIT_FAILED, EXIT_SOME_ERRORS, EXIT_USAGE, EXIT_RESUME = 0, 1, 2, 64, 75
_OVER = ("done", "interrupted", "failed")


def run(context: typer.Context) -> None:
    """Answer every line of a file, once; what was answered survives the machine."""
    os.environ.setdefault(
        "VLLM_LOGGING_LEVEL", "WARNING"
    )  # an engine that is started again is told
    quieten()
    raise typer.Exit(run_job(context.args))


def run_job(argv: Sequence[str]) -> int:
    """Run a command line to its exit code."""
    from vllm_batchllm.jobs.dry_run import show_dry_run
    from vllm_batchllm.jobs.job import Job
    from vllm_batchllm.jobs.options import parse_job

    try:
        options = parse_job(argv)
        job = Job(options)
        session = job.open()
    except UsageError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        return EXIT_RESUME
    try:
        if options.dry_run:
            defaults = options.settings.defaults
            show_dry_run(session, options.engine, defaults, options.device)
            job.clean()
            return EXIT_DONE
        return _run(job, session, options.report)
    finally:
        session.close()


def _run(job: Job, session: JobSession, report: Path | None) -> int:
    from vllm_batchllm.jobs.line_server import Ending
    from vllm_batchllm.jobs.runner import EngineKeepsDyingError
    from vllm_batchllm.replicas.errors import NotPlacedError

    progress = job.progress
    try:
        ending = job.run(session)
        if ending is Ending.DONE:
            progress.say("finishing")
            job.finish(session)
            progress.say("done")
            code = EXIT_SOME_ERRORS if session.counts.failed else EXIT_DONE
        else:
            progress.say("interrupted", "run the same command again to go on")
            code = EXIT_RESUME
    except KeyboardInterrupt:
        progress.say("interrupted", "run the same command again to go on")
        code = EXIT_RESUME
    except NotPlacedError as error:
        progress.say("failed", str(error))
        return _refuse(error)
    except (EngineKeepsDyingError, UsageError, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"the journal cannot be written: {error.strerror or error}"
        progress.say("failed", f"{reason}. What was answered is kept; the same command goes on")
        code = EXIT_FAILED
    finally:
        progress.close()
    _tell(progress.state, report)
    if code in (EXIT_DONE, EXIT_SOME_ERRORS):
        job.clean()
    return code


def _tell(state: Any, report: Path | None) -> None:
    from rich.console import Console

    from vllm_batchllm.jobs.summary import table, write_report

    Console(stderr=True).print(table(asdict(state)))
    if report is not None:
        write_report(asdict(state), report)
        tell_page(report)


def _refuse(error: UsageError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_USAGE


def status(
    output: Annotated[Path, typer.Argument(help="OUTPUT of the job, or its status file.")],
    as_json: AsJson = False,
) -> None:
    """Tell how far a job is that runs elsewhere, or has run."""
    from rich.console import Console

    from vllm_batchllm.files import read_json
    from vllm_batchllm.jobs.paths import beside
    from vllm_batchllm.jobs.summary import table

    own = beside(output, "status.json")
    state = read_json(own if own.exists() else output)
    if state is None or "lines" not in state:
        print(
            f"error: {own} is missing or no state of a job; name its --status file", file=sys.stderr
        )
        raise typer.Exit(EXIT_USAGE)
    if state["state"] not in _OVER and _has_died(state):
        state["state"] = "interrupted"
        state["message"] = "its process is gone; run the same command again to go on"
    if as_json:
        print(json.dumps(state, indent=1))
    else:
        Console().print(table(state))


def _has_died(state: dict[str, Any]) -> bool:
    if state.get("host") != platform.node():
        return False
    try:
        os.kill(int(state["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
