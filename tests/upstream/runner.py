# SPDX-License-Identifier: Apache-2.0
"""Runs a part of vLLM's own tests in a process of its own, with stock's classes or with ours."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import substitution
from places import PLUGIN, PLUGIN_FOLDER

HERE = Path(__file__).resolve().parent
MODES = ("written", "async", "cached")
"""See ``substitution.MODE``."""
TEST_TIMEOUT_S = 120
OUR_PLUGIN = "batchllm"
PHASES = ("setup", "call", "teardown")
"""Of a test, each with an entry in the log."""


@dataclass(frozen=True)
class Arm:
    """Whose classes, and how schedulers are configured."""

    classes: str
    mode: str

    @property
    def name(self) -> str:
        """A short name for files."""
        return f"{self.classes}-{self.mode}"


@dataclass
class Result:
    """What a run showed; ``whole`` is True where it came to its end."""

    outcomes: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    built: Counter[tuple[str, bool]] = field(default_factory=Counter)
    seconds: float = 0.0
    whole: bool = False

    @property
    def passed(self) -> set[str]:
        """Ids of the tests that passed."""
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}

    def num_built(self, name: str, ours: bool) -> int:
        """Instances of vLLM's class ``name``, or of a class of ours that derives from it."""
        return self.built[name, ours]

    def add(self, other: Result) -> None:
        """Take in what another run showed, of other tests."""
        self.outcomes |= other.outcomes
        self.why |= other.why
        self.built += other.built
        self.seconds += other.seconds
        self.whole &= other.whole


# Compiling a model takes longer than a test may, and its engine here is none to measure.
NOT_COMPILED = {"TORCHDYNAMO_DISABLE": "1", "VLLM_USE_AOT_COMPILE": "0"}


def start(
    folder: Path,
    arm: Arm,
    targets: Sequence[str],
    log: Path,
    only: Collection[str] | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start pytest on ``targets`` in ``folder``; outcomes are appended to ``log``.

    only: ids of the tests to run; None runs all. environment: variables beside the usual.
    """
    command = [sys.executable, "-m", "pytest", "-c", str(folder / "pyproject.toml")]
    command += ["--rootdir", str(folder), "-p", "substitution", "-p", "no:cacheprovider"]
    command += [
        "-q",
        "--tb=native",
        "--timeout",
        str(TEST_TIMEOUT_S),
        "--continue-on-collection-errors",
    ]
    log.unlink(missing_ok=True)
    environment = _environment(folder, arm, log) | dict(environment)
    if only is not None:
        listed = log.with_suffix(".only")
        listed.write_text("\n".join(sorted(only)))
        environment[substitution.ONLY] = str(listed)
    with log.with_suffix(".txt").open("wb") as output:
        return subprocess.Popen(
            [*command, *targets],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> Result:
    """Wait for a run and read its log. It is ended with all its children after ``timeout_s``."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _end(process, log)
    return read_log(log)


def read_log(log: Path) -> Result:
    """What the plugin wrote, line by line."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return read_entries(json.loads(line) for line in lines)


def read_entries(entries: Iterable[dict[str, Any]]) -> Result:
    """The outcome of each test: the worst of its phases, skipped if any was, and unfinished if a
    run was ended in the middle of it."""
    result = Result()
    phases: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if "built" in entry:
            result.built[entry["built"], entry["ours"]] += 1
            continue
        if "ended" in entry:
            # 0: all passed, 1: some failed; anything else is no verdict on the tests.
            result.whole = entry["ended"] in (0, 1)
            continue
        phases[entry["id"]].append(entry["outcome"])
        result.seconds += entry.get("s", 0.0)
        if entry.get("why"):
            result.why.setdefault(entry["id"], entry["why"])
    for test, outcomes in phases.items():
        worse = [o for o in ("failed", "skipped", "xfailed") if o in outcomes]
        whole = "passed" if len(outcomes) >= len(PHASES) else "unfinished"
        result.outcomes[test] = worse[0] if worse else whole
    return result


def _end(process: subprocess.Popen[bytes], log: Path) -> None:
    """End what is left of a run: itself, and servers and engines that its tests started.

    Those lead sessions of their own, but have inherited the name of the log.
    """
    for each in psutil.process_iter():
        try:
            if each.environ().get(substitution.LOG) == str(log):
                each.kill()
        except psutil.Error:  # gone by now, or somebody else's
            continue
    process.wait()


def _environment(folder: Path, arm: Arm, log: Path) -> dict[str, str]:
    python_path = [str(HERE), str(folder / PLUGIN_FOLDER), os.environ.get("PYTHONPATH", "")]
    values = {
        substitution.CLASSES: arm.classes,
        substitution.MODE: arm.mode,
        substitution.LOG: str(log),
        "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "GOMP_SPINCOUNT": "1000",
    }
    if arm.classes == "stock":
        values["VLLM_PLUGINS"] = ",".join([*_other_plugins(), PLUGIN])
    # What our own tests set for themselves is not meant for these.
    inherited = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return inherited | values


def _other_plugins() -> list[str]:
    """Every plugin for vLLM that is installed here but ours."""
    groups = (g for g in importlib.metadata.entry_points().groups if g.startswith("vllm."))
    found = {e.name for group in groups for e in importlib.metadata.entry_points(group=group)}
    return sorted(found - {OUR_PLUGIN})
