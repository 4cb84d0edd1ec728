# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's test files are run, kept as data for each version, and how they are found."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import archive
import local_models
from runner import Result

FOLDERS = {
    "core": "tests/v1/core",
    "engine": "tests/v1/engine",
    "kv_connector": "tests/v1/kv_connector/unit",
    "e2e": "tests/v1/e2e",
    "sample": "tests/v1/sample",
    "entrypoints": "tests/entrypoints",
}
RECORDED = Path(__file__).resolve().parent / "recorded"
STARTS_ENGINE = re.compile(
    r"RemoteOpenAIServer|RemoteVLLM|VllmRunner|vllm_runner|\bLLM\(|AsyncEngineArgs|\bLLMEngine\b"
    r"|\"run-batch\""
)
"""Marks of a file whose tests load a model."""
HUB_NAME = re.compile(
    r"""["']((?!(?:v1|tests|application|text|image|audio|multipart)/)[\w.-]+/[\w.-]+[\w])["']"""
)
"""A name as models and data sets have on the hub; also many a path."""
NOT_A_MODEL = re.compile(r"\.(?:py|json|jinja|jpg|png|wav)$")
FILES_PER_RUN = 20
REASONS = (
    ("needs a GPU", r"cuda|gpu|rocm|triton|nvidia|hip\b|xpu|flash|device"),
    ("needs a model from the hub", r"offline|hub|huggingface|local_files_only|can't load"),
    ("needs a package that is not installed", r"No module named|could not import|not installed"),
)


@dataclass
class Suite:
    """Files of one folder.

    files: test file and how many of its tests pass with stock.
    engines: those of them that start engines; each runs in a process of its own.
    left_out: test file and why no test of it is run.
    """

    path: str
    files: dict[str, int] = field(default_factory=dict)
    engines: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def targets(self) -> list[str]:
        """What to give to pytest at once: all that starts no engine."""
        return [f"{self.path}/{name}" for name in self.files if name not in self.engines]

    @property
    def batches(self) -> list[list[str]]:
        """The targets, run by run."""
        targets, each = self.targets, FILES_PER_RUN
        return [targets[at : at + each] for at in range(0, len(targets), each)]

    @property
    def engine_batches(self) -> list[list[str]]:
        """What starts engines, run by run."""
        return [[f"{self.path}/{name}"] for name in self.engines if name in self.files]


def path_of(release: archive.Release) -> Path:
    """Where the suites of a minor version are recorded."""
    return RECORDED / f"suites-{release.minor}.json"


def load(release: archive.Release) -> dict[str, Suite]:
    """The recorded suites of a version by name; empty before its first survey."""
    path = path_of(release)
    content = json.loads(path.read_text()) if path.is_file() else {}
    return {name: Suite(**values) for name, values in content.items()}


def save(suites: dict[str, Suite], release: archive.Release) -> None:
    """Record the suites of a version."""
    content = {name: asdict(suite) for name, suite in suites.items()}
    path_of(release).write_text(json.dumps(content, indent=1) + "\n")


def candidates(folder: Path, path: str) -> Suite:
    """Test files below ``path`` as they may run here, and why the others are not tried."""
    suite = Suite(path)
    for file in sorted((folder / path).rglob("test_*.py")):
        name, text = str(file.relative_to(folder / path)), file.read_text()
        if not STARTS_ENGINE.search(text):
            suite.files[name] = 0
            continue
        asked = {m for m in HUB_NAME.findall(text) if not NOT_A_MODEL.search(m)}
        if asked and not asked & local_models.RUNNABLE.keys():
            suite.left_out[name] = f"starts engines on {', '.join(sorted(asked)[:3])} from the hub"
        else:
            suite.files[name] = 0
            suite.engines.append(name)
    return suite


def surveyed(tried: Suite, stock: Result) -> Suite:
    """The suite that a run of ``tried`` with stock's classes shows."""
    prefix = f"{tried.path}/"
    passed = Counter(test.partition("::")[0].removeprefix(prefix) for test in stock.passed)
    causes: dict[str, list[str]] = defaultdict(list)
    for test, why in stock.why.items():
        causes[test.partition("::")[0].removeprefix(prefix)].append(why)
    suite = Suite(tried.path, left_out=dict(tried.left_out))
    for name in tried.files:
        if passed[name]:
            suite.files[name] = passed[name]
        else:
            suite.left_out[name] = _reason(causes[name])
    suite.engines = [name for name in tried.engines if name in suite.files]
    suite.left_out = dict(sorted(suite.left_out.items()))
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
