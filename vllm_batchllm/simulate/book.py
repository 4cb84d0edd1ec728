# SPDX-License-Identifier: Apache-2.0
"""What is kept of simulations while they run, so that an interrupted one leaves what it has finished."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.environment import describe_environment
from vllm_batchllm.simulate.suite import Simulation, SimulationReport, write_record


class Book:
    """The record, and the page if one is wanted, written anew after every finished row."""

    def __init__(
        self,
        folder: Path | None,
        price: float | None,
        on_report: Callable[[SimulationReport], None] | None = None,
    ) -> None:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.report = SimulationReport((), describe_environment(), command, price)
        self._folder, self._on_report = folder, on_report
        if folder is not None:
            self._write()

    def put(self, result: Simulation) -> None:
        """Keep a result; it replaces the one before if it has that one's rows and more."""
        done = self.report.results
        if done and done[-1].runs == result.runs[:-1] and done[-1].workload == result.workload:
            done = done[:-1]
        self.report = dataclasses.replace(self.report, results=(*done, result))
        if self._folder is not None:
            self._write()
        if self._on_report is not None:
            self._on_report(self.report)

    def _write(self) -> None:
        assert self._folder is not None
        try:
            write_record(self.report, self._folder)
        except OSError as error:
            raise UsageError(
                f"cannot write the record into {self._folder}: {error.strerror or error}"
            ) from None
