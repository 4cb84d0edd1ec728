# SPDX-License-Identifier: Apache-2.0
"""A test that passes only behind others is not lost where ours is not given the others."""

from __future__ import annotations

from typing import Any

import conformance
import pytest
import suites
from runner import Arm, Result

SUITE = suites.Suite("tests/x", {"a.py": 2, "b.py": 1, "e.py": 1}, engines=["e.py"])
A1, A2, B1, E1 = "tests/x/a.py::1", "tests/x/a.py::2", "tests/x/b.py::1", "tests/x/e.py::1"
STOCK = {A1, A2, B1, E1}


class Asked:
    """Stock by itself passes `passes`; remembers what it was asked."""

    release: Any = None

    def __init__(self, passes: set[str], whole: bool = True) -> None:
        self.passes, self.whole = passes, whole
        self.selections: list[set[str]] = []

    def run(self, name: str, arm: Arm, suite: suites.Suite, only: set[str]) -> Result:
        assert (name, arm.name) == ("x-selected", "stock-written") and suite is SUITE
        self.selections.append(only)
        result = Result(whole=self.whole)
        result.outcomes = {test: "passed" if test in self.passes else "failed" for test in only}
        return result


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "load", lambda release: {"x": SUITE})


def found(bench: Any, ours: set[str]) -> set[str]:
    return conformance.needing_others("x", "written", bench, STOCK, ours)


def test_nobody_is_asked_where_nothing_is_missing() -> None:
    bench = Asked(set())
    assert found(bench, STOCK) == set() and not bench.selections


def test_what_stock_loses_as_well_with_the_same_selection_is_not_lost() -> None:
    bench = Asked({A2, B1})
    assert found(bench, {A2, B1, E1}) == {A1}
    assert bench.selections == [{A1, A2, B1}], (
        "the runs of files that have something missing, whole"
    )


def test_what_stock_passes_then_is_lost() -> None:
    assert found(Asked({A1, A2, B1}), {A2, B1, E1}) == set()


def test_a_run_that_does_not_end_excuses_nothing() -> None:
    assert found(Asked(set(), whole=False), {A2, B1, E1}) == set()
