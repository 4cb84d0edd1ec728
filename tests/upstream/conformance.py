# SPDX-License-Identifier: Apache-2.0
"""``make conformance``: all suites with stock's classes and with ours, and the table of both.

Also renews what CI compares with (``recorded/core.json``), and with ``--survey`` the list of
files that are run at all (``suites.json``).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import archive
import local_models
import outcome
import suites
from comparison import compare, load_exceptions
from runner import MODES, Arm, Result, prepared, read_log, run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "conformance"
RECORDED = Path(__file__).resolve().parent / "recorded" / "core.json"
CI_MODES = ("written", "async")
SUITE_TIMEOUT_S = 1800


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run vLLM's own tests with our classes.")
    parser.add_argument("--suite", action="append", choices=suites.FOLDERS, help="default: all")
    parser.add_argument("--mode", action="append", choices=MODES, help="default: all")
    parser.add_argument("--survey", action="store_true", help="find out which files can run here")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--logs", type=Path, help="keep the logs in this folder, and go on from there"
    )
    options = parser.parse_args()
    names = options.suite or list(suites.FOLDERS)
    try:
        with tempfile.TemporaryDirectory(prefix="vllm-conformance-") as scratch:
            logs = (options.logs or Path(scratch) / "logs").resolve()
            logs.mkdir(parents=True, exist_ok=True)
            bench = Bench(logs, local_models.make_models(Path(scratch) / "models"))
            if options.survey:
                return survey(names, bench)
            return conformance(names, options.mode or list(MODES), bench, options.results)
    except archive.ArchiveError as error:
        print(f"\nno conformance run: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True)
class Bench:
    """Where runs take their models from, and leave their logs."""

    logs: Path
    models: Path

    def run(self, arm: Arm, targets: list[str], label: str) -> Result:
        """Run ``targets`` in a folder that nobody has used."""
        log = self.logs / f"{label}-{arm.name}.jsonl"
        earlier = read_log(log)
        if earlier.whole:
            return earlier
        with tempfile.TemporaryDirectory(prefix="vllm-tests-") as folder:
            place = prepared(Path(folder), self.models)
            return run(place, arm, targets, log, SUITE_TIMEOUT_S)


def survey(names: list[str], bench: Bench) -> int:
    """Run everything that might run, with stock, and record which files are worth it."""
    known = suites.load() if suites.DATA.is_file() else {}
    for name in names:
        path = suites.FOLDERS[name]
        with tempfile.TemporaryDirectory() as folder:
            place = archive.unpacked(archive.fetched(), Path(folder))
            tried, left_out = suites.candidates(place, path)
        targets = [f"{path}/{file}" for file in tried]
        stock = bench.run(Arm("stock", "written"), targets, f"survey-{name}")
        known[name] = suites.surveyed(path, tried, left_out, stock)
        suites.save(known)
        print(f"{name}: {len(stock.passed)} pass in {len(known[name].files)} files", flush=True)
    return 0


def conformance(names: list[str], modes: list[str], bench: Bench, results: Path) -> int:
    """Run suites in modes, both ways; write the table; 1 if anything is lost."""
    exceptions, rows = load_exceptions(), []
    known = suites.load()
    for name in names:
        if name not in known or not known[name].files:
            print(f"{name}: no file of it can run here, or none has been looked for (--survey)")
    recorded: dict[str, list[str]] = {}
    for name in [name for name in names if name in known and known[name].files]:
        for mode in modes:
            row = compared(name, mode, bench, exceptions.get(mode, {}))
            rows.append(row)
            print("\n".join([row.line(), *row.problems]), flush=True)
            if name == "core":
                recorded[mode] = sorted(row.stock.passed)
            if not row.builds_schedulers:
                break  # the other modes change nothing but schedulers
    if set(CI_MODES) <= set(recorded):
        record({mode: recorded[mode] for mode in CI_MODES})
    if set(names) == set(suites.FOLDERS) and set(modes) == set(MODES):
        outcome.write(rows, exceptions, results)
        print(f"written to {results}")
    return 1 if any(row.problems for row in rows) else 0


def compared(name: str, mode: str, bench: Bench, exceptions: dict[str, str]) -> outcome.Row:
    """One suite in one mode, first with stock, then with ours."""
    targets = suites.load()[name].targets
    stock = bench.run(Arm("stock", mode), targets, name)
    ours = bench.run(Arm("ours", mode), targets, name)
    return outcome.Row(name, mode, compare(stock.passed, ours, exceptions), stock, ours)


def record(passed: dict[str, list[str]]) -> None:
    """Keep what passes with stock for CI, which then runs only ours."""
    content = {"vllm": archive.VERSION, "sha256": archive.SHA256, "passed": passed}
    RECORDED.write_text(json.dumps(content, indent=0) + "\n")


if __name__ == "__main__":
    sys.exit(main())
