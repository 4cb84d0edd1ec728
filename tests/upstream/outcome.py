# SPDX-License-Identifier: Apache-2.0
"""The outcome of all suites as JSON, and as a table to be read."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archive import Release
from comparison import Comparison
from runner import Result
from suites import Suite

MODE_NAMES = {
    "written": "as written",
    "async": "every scheduler asynchronous",
    "cached": "every scheduler with prefix caching",
}
INTRODUCTION = (
    "Made by `make conformance`. A test counts as passed with ours only if it passed with stock, in "
    "the same mode. *Sync*: as written, the asynchronous scheduler where a test asks for it. Only "
    "tests that build schedulers without an engine are run in the other two modes: engines here "
    "run on a CPU, whose platform turns asynchronous scheduling off."
)
HEAD = (
    "| suite | passed with stock | with ours, sync | all asynchronous: stock | ours "
    "| all with prefix caching: stock | ours | exceptions | missing | schedulers of ours built |"
)


@dataclass(frozen=True)
class Row:
    """One suite in one mode."""

    suite: str
    mode: str
    comparison: Comparison
    stock: Result
    ours: Result

    @property
    def problems(self) -> list[str]:
        """Everything that keeps this row from being good; empty where it is."""
        found = [f"lost: {test}" for test in self.comparison.lost]
        found += [f"an exception that passes: {test}" for test in self.comparison.idle]
        found += [
            f"the run with {name} did not come to its end"
            for name, result in (("stock", self.stock), ("ours", self.ours))
            if not result.whole
        ]
        if self.builds_schedulers and not self.num_schedulers:
            found.append("no scheduler of ours was built")
        return [f"{self.suite}, {MODE_NAMES[self.mode]}: {problem}" for problem in found]

    @property
    def builds_schedulers(self) -> bool:
        """Whether the tests build any scheduler at all."""
        return self.stock.num_built("Scheduler", ours=False) > 0

    @property
    def num_schedulers(self) -> int:
        """Schedulers of ours that the tests built."""
        return self.ours.num_built("Scheduler", ours=True)

    def line(self) -> str:
        """The row in markdown."""
        compared = self.comparison
        cells = [self.suite, MODE_NAMES[self.mode], compared.num_stock, compared.num_ours]
        cells += [len(compared.excepted), len(compared.lost), self.num_schedulers]
        cells.append(self.ours.num_built("BlockPool", ours=True))
        return f"| {' | '.join(map(str, cells))} |"

    def values(self) -> dict[str, Any]:
        """The row as plain values."""
        return {
            "suite": self.suite,
            "mode": self.mode,
            **asdict(self.comparison),
            "our_schedulers": self.num_schedulers,
            "stock_schedulers_in_our_run": self.ours.num_built("Scheduler", ours=False),
            "our_pools": self.ours.num_built("BlockPool", ours=True),
            "test_seconds_stock": round(self.stock.seconds, 1),
            "test_seconds_ours": round(self.ours.seconds, 1),
        }


def write(
    rows: Sequence[Row],
    exceptions: Mapping[str, Mapping[str, str]],
    suites: Mapping[str, Suite],
    release: Release,
    folder: Path,
) -> None:
    """Write ``conformance.json`` and ``README.md`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "vllm": release.version,
        "python": platform.python_version(),
        "rows": [row.values() for row in rows],
        "exceptions": exceptions,
    }
    (folder / "conformance.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "README.md").write_text(markdown(rows, exceptions, suites, release))


def markdown(
    rows: Sequence[Row],
    exceptions: Mapping[str, Mapping[str, str]],
    suites: Mapping[str, Suite],
    release: Release,
) -> str:
    """The table, the exceptions with their reasons, and the files that are not run."""
    by_suite: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_suite.setdefault(row.suite, {})[row.mode] = row
    listed = [
        f"- `{test}` ({MODE_NAMES[mode]}): {why}"
        for mode, tests in exceptions.items()
        for test, why in tests.items()
    ]
    lines = [
        f"# vLLM {release.version}'s own tests with our classes in place",
        "",
        INTRODUCTION,
        "",
        HEAD,
        "|" + " --- |" * (HEAD.count("|") - 1),
        *(_line(suite, by_mode) for suite, by_mode in by_suite.items()),
        "",
        "Exceptions:",
        "",
        *(listed or ["None."]),
        "",
        *_left_out(suites),
    ]
    return "\n".join(lines) + "\n"


def _line(suite: str, by_mode: Mapping[str, Row]) -> str:
    """One suite in all modes; a dash where its tests build no scheduler."""
    cells: list[object] = [suite]
    for mode in MODE_NAMES:
        row = by_mode.get(mode)
        cells += [row.comparison.num_stock, row.comparison.num_ours] if row else ["-", "-"]
    rows = by_mode.values()
    cells.append(len({test for row in rows for test in row.comparison.excepted}))
    cells.append(len({test for row in rows for test in row.comparison.lost}))
    cells.append(sum(row.num_schedulers for row in rows))
    return f"| {' | '.join(map(str, cells))} |"


def _left_out(suites: Mapping[str, Suite]) -> list[str]:
    """The files that are not run, with the reason, suite by suite."""
    lines = ["Files of which no test passes here with vLLM's own classes, or none could:"]
    for name, suite in suites.items():
        tried = f"{len(suite.files)} files run, {len(suite.engines)} of them start engines"
        lines += ["", f"**{name}** ({tried}; {len(suite.left_out)} not):", ""]
        lines += [f"- `{file}`: {_plain(why)}" for file, why in suite.left_out.items()]
    return lines


def _plain(why: str) -> str:
    """``why`` so that markdown leaves it as it is."""
    return why.replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'")
