# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's test files are run, kept as data in ``suites.json``, and how they are found."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runner import Result

FOLDERS = {
    "core": "tests/v1/core",
    "engine": "tests/v1/engine",
    "kv_connector": "tests/v1/kv_connector/unit",
    "e2e": "tests/v1/e2e",
    "sample": "tests/v1/sample",
    "entrypoints": "tests/entrypoints",
}
DATA = Path(__file__).resolve().parent / "suites.json"
STARTS_ENGINE = re.compile(
    r"RemoteOpenAIServer|RemoteVLLM|VllmRunner|vllm_runner|\bLLM\(|AsyncEngineArgs|\bLLMEngine\b"
)
"""Marks of a file whose tests load a model."""
HEAVY = "has tests that start an engine on a model, most of them on one from the hub"
ASYNC_PLUGIN = "pytest_asyncio"
REASONS = (
    ("needs a GPU", r"cuda|gpu|rocm|triton|nvidia|hip\b|xpu|flash|device"),
    ("needs a model from the hub", r"offline|hub|huggingface|local_files_only|can't load"),
    ("needs a package that is not installed", r"No module named|could not import|not installed"),
)


@dataclass
class Suite:
    """Files of one folder.

    files: test file and how many of its tests pass with stock.
    left_out: test file and why no test of it is run.
    """

    path: str
    files: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def targets(self) -> list[str]:
        """What to give to pytest."""
        return [f"{self.path}/{name}" for name in self.files]


def load(path: Path = DATA) -> dict[str, Suite]:
    """The recorded suites by name."""
    return {name: Suite(**values) for name, values in json.loads(path.read_text()).items()}


def save(suites: dict[str, Suite], path: Path = DATA) -> None:
    """Record the suites."""
    content = {name: asdict(suite) for name, suite in suites.items()}
    path.write_text(json.dumps(content, indent=1) + "\n")


def candidates(folder: Path, path: str) -> tuple[list[str], dict[str, str]]:
    """Test files below ``path``: those that may run here, and why the others are not tried."""
    tried, left_out = [], {}
    for file in sorted((folder / path).rglob("test_*.py")):
        name = str(file.relative_to(folder / path))
        if STARTS_ENGINE.search(file.read_text()):
            left_out[name] = HEAVY
        elif _lacks_plugin(file, folder / path):
            left_out[name] = f"its conftest needs {ASYNC_PLUGIN}, which is not installed"
        else:
            tried.append(name)
    return tried, left_out


def _lacks_plugin(file: Path, top: Path) -> bool:
    """Whether a conftest beside or above ``file`` cannot be imported here."""
    if importlib.util.find_spec(ASYNC_PLUGIN) is not None:
        return False
    folders = [folder for folder in file.parents if folder.is_relative_to(top)]
    conftests = [folder / "conftest.py" for folder in folders]
    return any(ASYNC_PLUGIN in c.read_text() for c in conftests if c.is_file())


def surveyed(path: str, tried: list[str], left_out: dict[str, str], stock: Result) -> Suite:
    """The suite that a run with stock's classes shows."""
    passed = Counter(test.partition("::")[0].removeprefix(f"{path}/") for test in stock.passed)
    causes: dict[str, list[str]] = defaultdict(list)
    for test, why in stock.why.items():
        causes[test.partition("::")[0].removeprefix(f"{path}/")].append(why)
    suite = Suite(path)
    for name in tried:
        if passed[name]:
            suite.files[name] = passed[name]
        else:
            suite.left_out[name] = _reason(causes[name])
    suite.left_out |= left_out
    return suite


def _reason(causes: list[str]) -> str:
    """The commonest cause in plain words."""
    if not causes:
        return "no test of it came to its end"
    cause = Counter(causes).most_common(1)[0][0]
    for reason, mark in REASONS:
        if re.search(mark, cause, re.IGNORECASE):
            return f"{reason}: {cause[:90]}"
    return f"does not pass with stock: {cause[:90]}"
