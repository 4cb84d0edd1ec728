# SPDX-License-Identifier: Apache-2.0
"""No scenario of the ratchet loses its test."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RATCHET = tomllib.loads((HERE / "ratchet.toml").read_text())
PINNED = sorted({test for part in RATCHET.values() for tests in part.values() for test in tests})
LEAST = {"run": 24, "batch_api": 14}
"""Scenarios of each part; a number that only grows."""
MAY_MARK = {"parametrize", "long"}


def test_no_scenario_is_gone() -> None:
    assert {part: len(scenarios) for part, scenarios in RATCHET.items()} == LEAST
    assert all(tests for part in RATCHET.values() for tests in part.values())


@pytest.mark.parametrize("test", PINNED)
def test_each_is_still_shown(test: str) -> None:
    """The test is there, and nothing skips it or expects it to fail."""
    file, _, name = test.partition("::")
    tree = ast.parse((HERE / file).read_text())
    (function,) = [one for one in tree.body if getattr(one, "name", "") == name]
    assert isinstance(function, ast.FunctionDef)
    marks = {
        node.attr
        for decorator in function.decorator_list
        for node in ast.walk(decorator)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pytest.mark.")
    }
    assert marks <= MAY_MARK, f"{test} is marked {sorted(marks - MAY_MARK)}"
    calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    assert not calls & {"pytest.skip", "pytest.xfail"}
