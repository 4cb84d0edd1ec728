# SPDX-License-Identifier: Apache-2.0
"""A whole job as a process of its own, to be killed: all of `vllm-batchllm run` but the engine, which only echoes.

python job_process.py INPUT OUTPUT DELAY_S [keep-order] [halves] [clock]
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from job_files import SETTINGS, EchoServer
from test_runner import FakeEngine

from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.source import Columns
from vllm_batchllm.jobs import command
from vllm_batchllm.jobs.feed import Window
from vllm_batchllm.jobs.job import Job
from vllm_batchllm.jobs.options import JobOptions
from vllm_batchllm.jobs.paths import job_paths
from vllm_batchllm.jobs.runner import RunLimits


class EchoJob(Job):
    """Answers take a while, so that there is a time to be killed in."""

    delay_s = 0.0

    @asynccontextmanager
    async def _started(self) -> AsyncIterator[Any]:
        self._may_stop = True
        self.progress.say("running")
        print("running", flush=True)
        yield FakeEngine(EchoServer(self.delay_s), Window(20, 40, 10**9))


def write_in_halves() -> None:
    """Let every write end in the middle, as a crash may find it."""
    real = os.pwrite
    os.pwrite = lambda file, data, at: real(file, bytes(data)[: max(len(data) // 2, 1)], at)


def let_the_clock_jump() -> None:
    """Every look at the clock of the wall is a day before the one before."""
    real, looks = time.time, [0]

    def jumping() -> float:
        looks[0] += 1
        return real() - 86_400 * looks[0]

    time.time = jumping


def main(input_name: str, output: str, delay_s: str, *extra: str) -> int:
    if "halves" in extra:
        write_in_halves()
    if "clock" in extra:
        let_the_clock_jump()
    keep_order = "keep-order" in extra
    EchoJob.delay_s = float(delay_s)
    try:
        paths = job_paths(input_name, output, None, None, keep_order)
        options = JobOptions(
            input_name,
            paths,
            Columns(),
            SETTINGS,
            RunLimits(grace_s=5.0),
            Namespace(),
            keep_order,
            restart=False,
            dry_run=False,
            report=None,
        )
        job = EchoJob(options)
        session = job.open()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return command.EXIT_USAGE
    try:
        return command._run(job, session, None)
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
