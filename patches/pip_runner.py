# SPDX-License-Identifier: Apache-2.0
"""Runs pip so that a person sees where it is, and one plain sentence when it fails.

pip prints hundreds of lines for a set-up of this size and hides the cause of a failure among them.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

NETWORK_MARKS = (
    "NewConnectionError",
    "NameResolutionError",
    "Temporary failure in name resolution",
    "Name or service not known",
    "Network is unreachable",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "Connection refused",
    "SSLError",
)
DISK_MARKS = ("No space left on device", "Errno 28", "Disk quota exceeded")
PLAIN_OUTPUT_EVERY_S = 10.0
STATUS_WIDTH = 96


class SetupError(Exception):
    """The set-up cannot go on; the text names the cause and the way out."""


def explain_failure(log: str) -> str:
    """One sentence for a failed pip run, from its output.

    Network and disk come first: pip ends such runs with misleading lines about missing packages.
    """
    package = _package_in_trouble(log)
    about = f" (at {package})" if package else ""
    if any(mark in log for mark in DISK_MARKS):
        return f"the disk is full{about}: free some space, then run the same command again"
    if any(mark in log for mark in NETWORK_MARKS):
        return (
            f"the package index could not be reached{about}: check the network, a proxy, and "
            "`pip config list`, then run the same command again"
        )
    if "ResolutionImpossible" in log or "conflicting dependencies" in log:
        return f"the pinned versions contradict each other{about}: see the lines above"
    if "No matching distribution found" in log:
        return (
            f"the package index has no fitting {package or 'package'} for this Python and machine: "
            "try another Python (3.11 to 3.14), or another index through PIP_EXTRA_INDEX_URL"
        )
    if "Failed building wheel" in log or "Failed to build" in log:
        return f"a package had to be compiled and failed{about}: see the lines above"
    return f"pip failed{about}: see the lines above"


def _package_in_trouble(log: str) -> str | None:
    patterns = (
        r"No matching distribution found for (\S+)",
        r"Failed building wheel for (\S+)",
        r"/simple/([\w.-]+)/",
        r"Collecting (\S+)(?![\s\S]*Collecting )",
    )
    for pattern in patterns:
        match = re.search(pattern, log)
        if match:
            return match.group(1)
    return None


class StatusLine:
    """Progress of one step: redrawn in place on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, label: str, total: int | None, out: IO[str] | None = None) -> None:
        self.label = label
        self.total = total
        self.num_seen = 0
        self.current = ""
        self._out = sys.stdout if out is None else out
        self._start = time.monotonic()
        self._last_plain = self._start

    def feed(self, line: str) -> None:
        """Take one line of pip's output into account."""
        words = line.strip().split(" (from", 1)[0]
        if words.startswith(("Collecting ", "Requirement already satisfied", "Processing ")):
            self.num_seen += 1
        if words.startswith(("Collecting ", "Downloading ", "Using cached ", "Installing ")):
            self.current = words.replace("Installing collected packages", "Installing")

    def draw(self) -> None:
        """Show the state, if it is time to."""
        now = time.monotonic()
        if self._out.isatty():
            self._out.write(f"\r\033[K{self.text(now)}")
        elif now - self._last_plain >= PLAIN_OUTPUT_EVERY_S:
            self._last_plain = now
            self._out.write(self.text(now) + "\n")
        self._out.flush()

    def finish(self, outcome: str) -> None:
        """Leave one line that says how the step ended and how long it took."""
        start = "\r\033[K" if self._out.isatty() else ""
        seconds = time.monotonic() - self._start
        self._out.write(f"{start}{self.label}: {outcome} after {seconds:.0f} s\n")
        self._out.flush()

    def text(self, now: float) -> str:
        """The line as it is shown at time `now` (seconds of the monotonic clock)."""
        seconds = int(now - self._start)
        share = ""
        if self.total is not None:
            share = f" {min(self.num_seen, self.total)}/{self.total}"
        head = f"{self.label}:{share} {seconds // 60}:{seconds % 60:02d} "
        return (head + self.current)[:STATUS_WIDTH]


def run_pip(python: Path, args: Sequence[str], label: str, total: int | None = None) -> None:
    """Run `pip install ARGS` with `python`, showing progress.

    Args:
        python: interpreter of the environment to install into.
        args: arguments after `pip install`.
        label: what this step is, for the status line.
        total: number of packages expected, if known.

    Raises:
        SetupError: pip failed; pip's last lines have been printed before.
    """
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    process = subprocess.Popen(
        [*command, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    status = StatusLine(label, total)
    log = _follow(process, status)
    failed = process.wait() != 0
    status.finish("failed" if failed else "done")
    if failed:
        print("\n" + "\n".join(log[-15:]), file=sys.stderr)
        raise SetupError(f"{label}: {explain_failure(chr(10).join(log))}")


def _follow(process: subprocess.Popen[str], status: StatusLine) -> list[str]:
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line.rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    log: list[str] = []
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            line = ""
        if line is None:
            break
        if line:
            log.append(line)
            status.feed(line)
        status.draw()
    return log
