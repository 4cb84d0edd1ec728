# SPDX-License-Identifier: Apache-2.0
"""The outcome of all suites as JSON, and as a table to be read."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import archive
from comparison import Comparison
from runner import Result

MODE_NAMES = {
    "written": "as written",
    "async": "every scheduler asynchronous",
    "cached": "every scheduler with prefix caching",
}
HEAD = (
    "| suite | mode | passed with stock | passed with ours | exceptions | missing "
    "| our schedulers built | our pools built |"
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


def write(rows: Sequence[Row], exceptions: Mapping[str, Mapping[str, str]], folder: Path) -> None:
    """Write ``conformance.json`` and ``README.md`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "vllm": archive.VERSION,
        "python": platform.python_version(),
        "rows": [row.values() for row in rows],
        "exceptions": exceptions,
    }
    (folder / "conformance.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "README.md").write_text(markdown(rows, exceptions))


def markdown(rows: Sequence[Row], exceptions: Mapping[str, Mapping[str, str]]) -> str:
    """The table with the exceptions and their reasons below it."""
    lines = [
        f"# vLLM {archive.VERSION}'s own tests with our classes in place",
        "",
        "Made by `make conformance`. A test counts as passed with ours only if it passed with stock.",
        "",
        HEAD,
        "|" + " --- |" * (HEAD.count("|") - 1),
        *(row.line() for row in rows),
        "",
    ]
    listed = [
        f"- `{test}` ({MODE_NAMES[mode]}): {why}"
        for mode, tests in exceptions.items()
        for test, why in tests.items()
    ]
    return "\n".join([*lines, "Exceptions:", "", *(listed or ["None."])]) + "\n"
