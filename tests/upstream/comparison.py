# SPDX-License-Identifier: Apache-2.0
"""Stock's run beside ours, test by test: what passes with stock has to pass with ours."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner import Result

EXCEPTIONS = Path(__file__).resolve().parent / "exceptions.toml"
MAX_EXCEPTIONS = 10


class ExceptionListError(ValueError):
    """The list of exceptions is not what it may be; the text says what is wrong with it."""


@dataclass(frozen=True)
class Comparison:
    """One suite in one mode.

    lost: passed with stock, not with ours, and no exception.
    excepted: passed with stock, not with ours, and listed with a reason.
    idle: listed as an exception although it passes with ours.
    """

    num_stock: int
    num_ours: int
    lost: tuple[str, ...]
    excepted: tuple[str, ...]
    idle: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, and every exception is one."""
        return not self.lost and not self.idle


def compare(
    passed_stock: Collection[str], ours: Result, exceptions: Mapping[str, str]
) -> Comparison:
    """Compare what passes with stock to a run of the same tests with ours."""
    passed_ours = ours.passed
    missing = sorted(set(passed_stock) - passed_ours)
    return Comparison(
        num_stock=len(passed_stock),
        num_ours=len(set(passed_stock) & passed_ours),
        lost=tuple(test for test in missing if test not in exceptions),
        excepted=tuple(test for test in missing if test in exceptions),
        idle=tuple(sorted(passed_ours & set(exceptions))),
    )


def load_exceptions(path: Path = EXCEPTIONS) -> dict[str, dict[str, str]]:
    """For each mode, test ids and why they may fail with ours.

    Raises:
        ExceptionListError: more than ten in all, or one without a reason.
    """
    found: dict[str, dict[str, str]] = tomllib.loads(path.read_text())
    tests = {test for listed in found.values() for test in listed}
    if len(tests) > MAX_EXCEPTIONS:
        raise ExceptionListError(f"{len(tests)} exceptions are listed; {MAX_EXCEPTIONS} may be")
    for mode, listed in found.items():
        for test, why in listed.items():
            if not why.strip():
                raise ExceptionListError(f"no reason is given for {test} ({mode})")
    return found
