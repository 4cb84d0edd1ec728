# SPDX-License-Identifier: Apache-2.0
"""Runs a part of vLLM's own tests in a process of its own, with stock's classes or with ours."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import archive
import substitution

HERE = Path(__file__).resolve().parent
MODES = ("written", "async", "cached")
"""See ``substitution.MODE``."""
TEST_TIMEOUT_S = 120
OUR_PLUGIN = "batchllm"
# vLLM's conftest wants this package only to carry exceptions out of child processes.
STAND_IN = {"__init__.py": "", "pickling_support.py": "def install():\n    pass\n"}


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


def prepared(folder: Path, models: Path) -> Path:
    """Make ``folder`` a place to run vLLM's tests in, with the model folders of ``models``.

    Raises:
        ArchiveError: the source archive is not to be had.
    """
    archive.unpacked(archive.fetched(), folder)
    for owner in models.iterdir():
        (folder / owner.name).symlink_to(owner)
    if importlib.util.find_spec("tblib") is None:
        (folder / "tblib").mkdir()
        for name, text in STAND_IN.items():
            (folder / "tblib" / name).write_text(text)
    return folder


def start(folder: Path, arm: Arm, targets: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start pytest on ``targets`` in ``folder``; outcomes are appended to ``log``."""
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
    with log.with_suffix(".txt").open("wb") as output:
        return subprocess.Popen(
            [*command, *targets],
            cwd=folder,
            env=_environment(folder, arm, log),
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
        _end(process)
    return read_log(log)


def run(folder: Path, arm: Arm, targets: Sequence[str], log: Path, timeout_s: float) -> Result:
    """Run ``targets`` in ``folder`` and wait."""
    return finish(start(folder, arm, targets, log), log, timeout_s)


def read_log(log: Path) -> Result:
    """What the plugin wrote, line by line."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return read_entries(json.loads(line) for line in lines)


def read_entries(entries: Iterable[dict[str, Any]]) -> Result:
    """The outcome of each test: the worst of its phases, and skipped if any was."""
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
        result.outcomes[test] = worse[0] if worse else "passed"
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the run's own session: servers that a test has left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _environment(folder: Path, arm: Arm, log: Path) -> dict[str, str]:
    python_path = [str(HERE), os.environ.get("PYTHONPATH", "")]
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
        values["VLLM_PLUGINS"] = ",".join(_other_plugins())
    # What our own tests set for themselves is not meant for these.
    inherited = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return inherited | values


def _other_plugins() -> list[str]:
    """Every plugin for vLLM that is installed here but ours."""
    groups = (g for g in importlib.metadata.entry_points().groups if g.startswith("vllm."))
    found = {e.name for group in groups for e in importlib.metadata.entry_points(group=group)}
    return sorted(found - {OUR_PLUGIN})
