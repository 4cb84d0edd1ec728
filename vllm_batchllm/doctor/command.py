# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm doctor`: is all well here, what will happen, and how to go back.

Exit codes: 0 all is well, 1 there is a problem.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vllm_batchllm.doctor.finding import Finding, guarded, is_well, to_json
from vllm_batchllm.doctor.installation import check_environment, check_plugin, check_vllm
from vllm_batchllm.shared_options import AsJson, ModelOrRandom

EXIT_PROBLEM = 1


def doctor(
    model: ModelOrRandom = None,
    quick: Annotated[
        bool, typer.Option(help="Start no engine: leave out the short A/B against stock vLLM.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell whether the plugin works on this machine, what to expect, and how to go back."""
    found: list[Finding] = []
    for finding in examine(model, quick):
        found.append(finding)
        if not as_json:
            print(finding, flush=True)
    if as_json:
        print(to_json(found))
    if not is_well(found):
        raise typer.Exit(EXIT_PROBLEM)


def examine(model: str | None, quick: bool) -> Iterator[Finding]:
    """All findings, as they are made; without vLLM there is nothing more to ask."""
    about_vllm = list(guarded("vLLM", check_vllm, "problem"))
    yield from about_vllm
    yield from guarded("plugin", check_plugin)
    yield from guarded("VLLM_BATCHLLM", check_environment)
    if is_well(about_vllm):
        yield from guarded("engine", lambda: _in_folder(model, quick), "problem")


def _in_folder(model: str | None, quick: bool) -> Iterator[Finding]:
    """All that needs vLLM, and a folder for the random model."""
    with tempfile.TemporaryDirectory(prefix="vllm-batchllm-") as folder:
        yield from _examine_engine(model, Path(folder), quick)


def _examine_engine(model: str | None, folder: Path, quick: bool) -> Iterator[Finding]:
    from vllm_batchllm.doctor import comparison, devices, engine_check
    from vllm_batchllm.doctor.model import Resolved, resolve

    _quieten()
    platform = list(guarded("device", devices.check_platform))
    yield from platform
    resolved: list[Resolved] = []
    yield from guarded("model", lambda: resolve(model, folder, resolved), "problem")
    if not resolved or not is_well(platform):
        return
    path, vocab_size, dtype, on_cpu = resolved[0]
    yield from guarded("engine", lambda: engine_check.check_engine(path, dtype), "problem")
    if not quick:
        yield from guarded(
            comparison.TOPIC,
            lambda: comparison.check_gain(path, dtype, vocab_size, on_cpu=on_cpu),
            "problem",
            "--quick leaves it out; VLLM_LOGGING_LEVEL=INFO shows vLLM's log",
        )
    yield from comparison.advice()


def _quieten() -> None:
    """Before vLLM is imported: its log is not ours, and standard output is for findings."""
    from vllm_batchllm.measure.command_line import quieten

    quieten()
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
