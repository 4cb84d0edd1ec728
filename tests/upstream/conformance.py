# SPDX-License-Identifier: Apache-2.0
"""``make conformance``: all suites with stock's classes and with ours, and the table of both.

Of the vLLM that is installed, which with ``.next`` on PYTHONPATH is the next one. Also renews what
CI compares with (``recorded/core-*.json``), and with ``--survey`` the list of files that are run at
all (``recorded/suites-*.json``).
"""

from __future__ import annotations

import argparse
import hashlib
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
from places import prepared
from runner import MODES, NOT_COMPILED, Arm, Result, finish, read_log, start

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "conformance"
CI_MODES = ("written", "async")
RUN_TIMEOUT_S = 1800
ENGINE_RUN_TIMEOUT_S = 900


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run vLLM's own tests with our classes.")
    parser.add_argument("--suite", action="append", choices=suites.FOLDERS, help="default: all")
    parser.add_argument("--mode", action="append", choices=MODES, help="default: all")
    parser.add_argument("--survey", action="store_true", help="find out which files can run here")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/conformance")
    parser.add_argument(
        "--logs", type=Path, help="keep the logs in this folder, and go on from there"
    )
    options = parser.parse_args()
    names = options.suite or list(suites.FOLDERS)
    try:
        with tempfile.TemporaryDirectory(prefix="vllm-conformance-") as scratch:
            logs = (options.logs or Path(scratch) / "logs").resolve()
            logs.mkdir(parents=True, exist_ok=True)
            release = archive.installed()
            bench = Bench(release, logs, local_models.make_models(Path(scratch) / "models"))
            if options.survey:
                return survey(names, bench)
            results = options.results or results_of(release)
            return conformance(names, options.mode or list(MODES), bench, results)
    except archive.ArchiveError as error:
        print(f"\nno conformance run: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True)
class Bench:
    """The version that is tested, and where runs take their models from and leave their logs."""

    release: archive.Release
    logs: Path
    models: Path

    def run(
        self,
        name: str,
        arm: Arm,
        suite: suites.Suite,
        only: set[str] | None = None,
        with_engines: bool = True,
    ) -> Result:
        """Run all batches of ``suite``, each in a folder that nobody has used.

        Engines are started as a test asks only: no mode is put upon them.
        """
        total = Result(whole=True)
        how: tuple[float, dict[str, str]] = (RUN_TIMEOUT_S, {})
        batches = [(batch, *how) for batch in suite.batches]
        if with_engines and arm.mode == "written":
            how = (ENGINE_RUN_TIMEOUT_S, NOT_COMPILED)
            batches += [(batch, *how) for batch in suite.engine_batches]
        for batch, *conditions in batches:
            wanted = {test for test in only or () if test.partition("::")[0] in batch}
            if only is None or wanted:
                chosen = None if only is None else wanted
                total.add(self._run_batch(name, arm, batch, chosen, *conditions))
        return total

    def _run_batch(
        self,
        name: str,
        arm: Arm,
        batch: list[str],
        only: set[str] | None,
        timeout_s: float,
        environment: dict[str, str],
    ) -> Result:
        digest = hashlib.sha256("\n".join(batch).encode()).hexdigest()[:8]
        log = self.logs / f"{name}-{digest}-{arm.name}.jsonl"
        earlier = read_log(log)
        if earlier.whole:
            return earlier
        with tempfile.TemporaryDirectory(prefix="vllm-tests-") as folder:
            place = prepared(Path(folder), self.models)
            return finish(start(place, arm, batch, log, only, environment), log, timeout_s)


def survey(names: list[str], bench: Bench) -> int:
    """Run everything that might run, with stock, and record which files are worth it."""
    known, source = suites.load(bench.release), archive.fetched(bench.release)
    for name in names:
        path = suites.FOLDERS[name]
        with tempfile.TemporaryDirectory() as folder:
            tried = suites.candidates(archive.unpacked(source, Path(folder)), path)
        stock = bench.run(f"survey-{name}", Arm("stock", "written"), tried)
        known[name] = suites.surveyed(tried, stock)
        suites.save(known, bench.release)
        print(f"{name}: {len(stock.passed)} pass in {len(known[name].files)} files", flush=True)
    return 0


def conformance(names: list[str], modes: list[str], bench: Bench, results: Path) -> int:
    """Run suites in modes, both ways; write the table; 1 if anything is lost."""
    exceptions, rows = load_exceptions(), []
    known = suites.load(bench.release)
    for name in names:
        if name not in known or not known[name].files:
            print(f"{name}: no file of it can run here, or none has been looked for (--survey)")
    for name in [name for name in names if name in known and known[name].files]:
        for mode in modes if builds_schedulers(name, bench) else modes[:1]:
            row = compared(name, mode, bench, exceptions.get(mode, {}))
            rows.append(row)
            print("\n".join([row.line(), *row.problems]), flush=True)
    if "core" in known:
        core = [row for row in rows if row.suite == "core"]
        record(core, known["core"].targets, bench.release)
    if set(names) >= set(known) and set(modes) == set(MODES):
        outcome.write(rows, exceptions, known, bench.release, results)
        print(f"written to {results}")
    return 1 if any(row.problems for row in rows) else 0


def builds_schedulers(name: str, bench: Bench) -> bool:
    """Whether tests build any without an engine: the modes beside the first change nothing else."""
    stock = bench.run(
        name, Arm("stock", "written"), suites.load(bench.release)[name], with_engines=False
    )
    return stock.num_built("Scheduler", ours=False) > 0


def compared(name: str, mode: str, bench: Bench, exceptions: dict[str, str]) -> outcome.Row:
    """One suite in one mode, first with stock, then with ours what has passed."""
    suite = suites.load(bench.release)[name]
    stock = bench.run(name, Arm("stock", mode), suite)
    ours = bench.run(name, Arm("ours", mode), suite, stock.passed)
    passed = stock.passed - needing_others(name, mode, bench, stock.passed, ours.passed)
    return outcome.Row(name, mode, compare(passed, ours, exceptions), stock, ours)


def needing_others(name: str, mode: str, bench: Bench, stock: set[str], ours: set[str]) -> set[str]:
    """Tests that pass with stock only behind others, which do not pass and so are not run with ours.

    What is missing with ours is asked again of stock, with the very selection that ours was given.
    """
    missing, suite = stock - ours, suites.load(bench.release)[name]
    files = {test.partition("::")[0] for test in missing}
    batches = [batch for batch in (*suite.batches, *suite.engine_batches) if files & set(batch)]
    selected = {test for test in stock if any(test.partition("::")[0] in one for one in batches)}
    if not selected:
        return set()
    again = bench.run(f"{name}-selected", Arm("stock", mode), suite, selected)
    found = missing - again.passed if again.whole else set()
    for test in sorted(found):
        print(
            f"{name}: {test} does not pass with stock either without the tests that ours is not given"
        )
    return found


def recorded_core(release: archive.Release) -> Path:
    """The list of what passes of a version's core tests with stock."""
    return suites.RECORDED / f"core-{release.minor}.json"


def results_of(release: archive.Release) -> Path:
    """Where the table of a version goes: in a folder of its own, but for what is set up here."""
    return RESULTS if release == archive.CURRENT else RESULTS / release.minor


def record(rows: list[outcome.Row], files: list[str], release: archive.Release) -> None:
    """Keep what passes with stock in ``files`` for CI, which then runs only ours."""
    passed = {
        row.mode: sorted(test for test in row.stock.passed if test.partition("::")[0] in files)
        for row in rows
        if row.mode in CI_MODES
    }
    if set(passed) == set(CI_MODES):
        content = {"vllm": release.version, "sha256": release.sha256, "passed": passed}
        recorded_core(release).write_text(json.dumps(content, indent=0) + "\n")


if __name__ == "__main__":
    sys.exit(main())
